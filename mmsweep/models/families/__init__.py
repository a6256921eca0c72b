"""The families of pretrained encoders: one file each, entered under transformers' model types, or `timm`."""
