//! Domains, as XenStore knows them.

use anyhow::bail;
use xen_types::{DomId, parse_decimal};
use xenstore::{Client, StoreError, Tree};

/// Finds the domain that a person names by number or by name. A number is never a name, as in xl.
pub(crate) fn find(store: &mut Client, named: &str) -> anyhow::Result<DomId> {
    if let Some(domid) = parse_domid(named) {
        must_live(store, domid)?;
        return Ok(domid);
    }
    let mut found = Vec::new();
    for domid in numbers(store, "/local/domain")?.filter_map(to_domid) {
        if name(store, domid)?.as_deref() == Some(named) {
            found.push(domid);
        }
    }
    match found.as_slice() {
        [domid] => Ok(*domid),
        [] => bail!("there is no domain named {named:?}; `xl list` shows the domains"),
        [first, second, ..] => {
            bail!("domains {first} and {second} are both named {named:?}: give the number")
        }
    }
}

/// The domain's name; `None` if it has none, or is gone.
pub(crate) fn name(tree: &mut impl Tree, domid: DomId) -> Result<Option<String>, StoreError> {
    read_text(tree, &format!("{}/name", home(domid)))
}

/// The UUID of the domain's virtual machine; empty if it is not known.
pub(crate) fn uuid(tree: &mut impl Tree, domid: DomId) -> Result<String, StoreError> {
    let vm = read_text(tree, &format!("{}/vm", home(domid)))?;
    let uuid = vm.as_deref().and_then(|vm| vm.strip_prefix("/vm/"));
    Ok(uuid.unwrap_or_default().to_owned())
}

/// Whether the domain exists: its toolstack makes this node first and removes it last.
pub(crate) fn lives(tree: &mut impl Tree, domid: DomId) -> Result<bool, StoreError> {
    Ok(tree.read_opt(&format!("{}/domid", home(domid)))?.is_some())
}

/// An error unless the domain exists. In a transaction, it also exists at the commit.
pub(crate) fn must_live(tree: &mut impl Tree, domid: DomId) -> anyhow::Result<()> {
    if !lives(tree, domid)? {
        bail!("there is no domain {domid}; `xl list` shows the domains");
    }
    Ok(())
}

/// The domain's directory.
pub(crate) fn home(domid: DomId) -> String {
    format!("/local/domain/{domid}")
}

/// A domain id in decimal.
pub(crate) fn parse_domid(text: &str) -> Option<DomId> {
    parse_decimal(text.as_bytes()).and_then(to_domid)
}

/// The children of a directory that are numbers, in order; none if it does not exist.
pub(crate) fn numbers(
    tree: &mut impl Tree,
    path: &str,
) -> Result<std::vec::IntoIter<u32>, StoreError> {
    let names = match tree.directory(path) {
        Err(error) if error.is_absent() => Vec::new(),
        other => other?,
    };
    let mut numbers: Vec<u32> = names
        .iter()
        .filter_map(|name| parse_decimal(name.as_bytes()))
        .collect();
    numbers.sort_unstable();
    Ok(numbers.into_iter())
}

/// A node's value as text; `None` if it does not exist. What is no UTF-8 is replaced: such a value
/// means nothing to any reader.
pub(crate) fn read_text(tree: &mut impl Tree, path: &str) -> Result<Option<String>, StoreError> {
    let value = tree.read_opt(path)?;
    Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
}

/// The domain id of a number that may be one.
pub(crate) fn to_domid(number: u32) -> Option<DomId> {
    u16::try_from(number)
        .ok()
        .map(DomId)
        .filter(|domid| *domid < DomId::FIRST_RESERVED)
}
