"""One run of a video self-supervised learning study: specs, FLOPs, data, model, training, probes."""

__version__ = "0.1.0"
