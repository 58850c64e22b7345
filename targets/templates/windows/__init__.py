"""Templates of windows that treat every channel alone: depthwise convolution and pooling."""
