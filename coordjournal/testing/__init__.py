"""For the tests of people who build on this: a real etcd, as a pytest fixture or in one's own hands.

`plugin` has the fixtures, `etcd` runs processes, `container` a container, `certificates` makes what TLS
needs. Nothing of it is imported until it is used.
"""
