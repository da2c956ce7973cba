//! XenStore: wire protocol, client over socket and /dev/xen/xenbus, and a server core.
