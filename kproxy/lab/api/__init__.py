"""The lab's API server: Kubernetes' API for the kinds the exercises use, in memory, in one process, with the small controllers it needs.

    http ─▶ requests (paths) ─▶ schema (unknown fields) ─▶ patch ─▶ registry (verbs) ─▶ objects/* (rules of a kind) ─▶ store
      ▲        │                                                                            └─ allocators (addresses, ports)  │
      └─ views, tables/* ◀── listing, watching ◀────────────────────────── log of changes ◀────────────────────────────────┘
                                                                                └─▶ controllers/* ─▶ registry

It stands in for kube-apiserver, kube-controller-manager and kube-scheduler where those cannot be had, and is held to the same answers by
tests that run one kubectl script against both. It checks no credentials: loopback and lab networks only.
"""
