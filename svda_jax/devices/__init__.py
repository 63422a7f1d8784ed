"""The machine: map over devices, processes, memory, compile cache, timing."""
