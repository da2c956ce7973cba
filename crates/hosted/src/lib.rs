//! The hosted platform: a broker that plays hypervisor and XenStore on machines without Xen.
