"""Programs that the kernel runs for kproxy (eBPF): written in Python, assembled here, loaded by bpf(2). No compiler, no object files.

    assembly.py   instructions with names and labels → octets        pure
    packets.py    octets between a packet and a program's frame      pure
    calls.py      maps, programs and links: what bpf(2) offers, by ctypes
    handing.py    how a worker gets their descriptors from the controller

What must not happen here: a program. Those stand beside what they are for (dns/kernel_program.py).
"""
