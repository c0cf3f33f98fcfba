"""What Services mean: values and pure functions, standard library only, no I/O, no clock, no logging.

names → objects → events → snapshot (`fold`) → desired (`resolve`, with topology) → diff. Nothing in here knows iptables or DNS
wire formats; nothing outside of here decides a traffic policy.
"""
