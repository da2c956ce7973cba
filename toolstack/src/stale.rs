//! Buses of which one side's domain is gone (binding section 9). A backend removes those of its dead
//! guests itself; what it did not see, or what a driver domain may not remove, goes with the next
//! attach or detach.

use xenstore::{Client, StoreError, Transaction, Tree as _};

use crate::bus::Bus;
use crate::domain::{self, read_text};

/// Removes every bus that has only one side left.
pub(crate) fn sweep(store: &mut Client) -> Result<(), StoreError> {
    for bus in Bus::all(store)? {
        let removed = store.transact(|tx| {
            let dead = is_dead(tx, &bus)?;
            if dead {
                remove(tx, &bus)?;
            }
            Ok::<_, StoreError>(dead)
        })?;
        if removed {
            tracing::info!("{bus}: one side's domain is gone; what was left of the bus is removed");
        }
    }
    Ok(())
}

/// Whether the bus's guest or backend is gone. A number that another domain got since counts as
/// gone: the guest's UUID is compared, and a new backend domain has no directory of this bus.
pub(crate) fn is_dead(tree: &mut impl xenstore::Tree, bus: &Bus) -> Result<bool, StoreError> {
    let backend = bus.backend();
    if !domain::lives(tree, bus.frontend_id)?
        || tree.read_opt(&format!("{backend}/frontend"))?.is_none()
    {
        return Ok(true);
    }
    let made_for = read_text(tree, &format!("{backend}/frontend-uuid"))?.unwrap_or_default();
    Ok(made_for != domain::uuid(tree, bus.frontend_id)?)
}

/// Removes the directories of both sides and the record, and the directories above them that are
/// empty then.
pub(crate) fn remove(tx: &mut Transaction<'_>, bus: &Bus) -> Result<(), StoreError> {
    for (path, parent) in [
        (bus.backend(), bus.backend_domain()),
        (bus.frontend(), bus.frontend_root()),
        (bus.record(), bus.record_domain()),
    ] {
        if tx.read_opt(&path)?.is_some() {
            tx.rm(&path)?;
        }
        match tx.directory(&parent) {
            Ok(names) if names.is_empty() => tx.rm(&parent)?,
            Err(error) if !error.is_absent() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
