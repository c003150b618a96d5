//! What a store holds, for backup and restore: read as a server reads it, without one.

use std::collections::BTreeSet;
use std::path::Path;

use perch_machine::Digest;
use perch_store::Store;

use super::ballast::Ballast;
use super::keeper::Keeper;
use super::pruning;

/// What is in a store.
#[derive(Debug)]
pub(crate) struct Contents {
    /// How many apps.
    pub(crate) apps: usize,
    /// Ids.
    pub(crate) machines: Vec<String>,
    /// Ids.
    pub(crate) volumes: Vec<String>,
    /// Images of its Machines, and those to go back to.
    pub(crate) images: BTreeSet<Digest>,
    /// Images of its Machines.
    pub(crate) machine_images: BTreeSet<Digest>,
}

/// Reads the store at `path`, which nobody else may have open; it gets this release's schema.
///
/// # Errors
/// When it cannot be read, or holds what this release does not understand.
pub(crate) fn contents(path: &Path) -> anyhow::Result<Contents> {
    let store = Store::open(path)?;
    let keeper = Keeper::load(store, Ballast::given_up(path.with_extension("ballast")))?;
    let catalog = keeper.read();
    let machine_images = catalog.machines.values().filter_map(|it| it.image.parse().ok());
    let images = pruning::referred_to(&catalog);
    Ok(Contents {
        apps: catalog.apps.len(),
        machines: catalog.machines.keys().cloned().collect(),
        volumes: catalog.volumes.keys().cloned().collect(),
        images: images.iter().filter_map(|digest| digest.parse().ok()).collect(),
        machine_images: machine_images.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::keeper::Change;
    use crate::server::records::tests as records;

    #[test]
    fn what_machines_run_and_what_releases_name_is_found() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let [one, two] = ["1", "2"].map(|digit| format!("sha256:{}", digit.repeat(64)));
        let mut machine = records::machine("m1");
        machine.image.clone_from(&one);
        let release = records::release("web", 1, &format!("registry.perch/web@{two}"));
        let changes = vec![
            Change::PutApp(records::app("web")),
            Change::PutMachine(Box::new(machine)),
            Change::PutRelease(Box::new(release)),
        ];
        Keeper::in_dir(dir.path()).write_blocking(|_| Ok((changes, ()))).expect("written");
        let found = contents(&dir.path().join("store.db")).expect("readable");
        assert_eq!((found.apps, found.machines), (1, vec!["m1".to_owned()]));
        let text = |digests: BTreeSet<Digest>| -> Vec<String> {
            digests.iter().map(ToString::to_string).collect()
        };
        assert_eq!(text(found.machine_images).join(" "), one);
        assert_eq!(text(found.images), [one, two]);
    }
}
