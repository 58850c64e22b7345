"""From a graph to machine code: kernels are selected, memory is planned, code is emitted and linked."""
