"""What kproxy sets on the machine besides rules: the kernel's parameters for connection tracking, and how dear its processes are."""
