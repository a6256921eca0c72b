"""The families of pretrained encoders, one file each, registered under transformers' model types or `timm`."""
