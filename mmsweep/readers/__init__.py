"""Shows sweeps from their records: tables, the report, MLflow. Parses no study; writes nothing that training reads."""
