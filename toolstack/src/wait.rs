//! Waiting for something in XenStore, woken by watches and bounded in time.

use std::time::{Duration, Instant};

use xenstore::Client;

/// The token of the watches.
const TOKEN: &str = "vmsg-wait";

/// Asks `look` until it answers something, again after each change at or below one of `paths`.
/// `Ok(None)` when `limit` is over.
pub(crate) fn until<T>(
    store: &mut Client,
    paths: &[&str],
    limit: Duration,
    mut look: impl FnMut(&mut Client) -> anyhow::Result<Option<T>>,
) -> anyhow::Result<Option<T>> {
    for path in paths {
        store.watch(path, TOKEN)?;
    }
    let deadline = Instant::now() + limit;
    let found = loop {
        if let Some(found) = look(store)? {
            break Some(found);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break None;
        }
        // An event or none: the loop looks once more either way.
        store.wait_event(left)?;
    };
    for path in paths {
        store.unwatch(path, TOKEN)?;
    }
    Ok(found)
}
