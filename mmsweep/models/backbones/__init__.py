"""The backbones, each in the file or folder of its name with its options."""
