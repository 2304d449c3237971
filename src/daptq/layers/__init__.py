"""The linear layers and transformer stacks that policies run: packed weights, and the choice of a kernel for each."""
