"""Shows sweeps from their records: tables, the report, MLflow. It parses no study and writes nothing training reads."""
