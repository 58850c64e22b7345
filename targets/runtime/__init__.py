"""What runs a compiled model: the executable, the virtual machine behind it, and arrays in and out."""
