//! Removes images that nothing refers to.
//!
//! An image is in use while a Machine is configured with it, a run of it lives, one of its app's newest releases
//! names it, or it is being made ready for a Machine; and for a while after it was pushed.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use perch_machine::Digest;

use super::images::{Reference, chain};
use super::keeper::Catalog;
use super::world::World;

/// Newest releases of each app whose images are kept, to go back to.
const RELEASES_KEPT: usize = 10;
/// Between two looks, unless the grace is short.
const INTERVAL_MAX: Duration = Duration::from_secs(600);
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Prunes now and then, until the server ends.
pub(crate) async fn prune(world: Arc<World>) {
    let grace = world.config.image_grace.0;
    let interval = (grace / 4).clamp(INTERVAL_MIN, INTERVAL_MAX);
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = world.shutdown.cancelled() => return,
        }
        // Before anything is looked at: what is asked for from here on is younger.
        let Some(unused_since) = SystemTime::now().checked_sub(grace) else { continue };
        let used = used(&world);
        match world.images.prune(used, unused_since).await {
            Ok(pruned) if pruned.manifests.is_empty() && pruned.blob_bytes == 0 => {}
            Ok(pruned) => tracing::info!(
                images = pruned.manifests.len(),
                blob_bytes = pruned.blob_bytes,
                "removed images that nothing refers to"
            ),
            Err(error) => {
                tracing::warn!(error = chain(&error), "unused images could not be removed");
            }
        }
    }
}

/// The order matters. An image that is made ready is in the catalog before it is let go of; a run is noted before the
/// catalog can name another image for its Machine.
fn used(world: &World) -> BTreeSet<Digest> {
    let mut used = world.images.claimed();
    used.extend(referred_to(&world.keeper.read()));
    used.extend(world.running_images());
    used.iter().filter_map(|digest| digest.parse().ok()).collect()
}

/// Digests that records name.
pub(crate) fn referred_to(catalog: &Catalog) -> BTreeSet<String> {
    let mut found: BTreeSet<String> =
        catalog.machines.values().map(|machine| machine.image.clone()).collect();
    let mut releases: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for release in catalog.releases.values() {
        releases.entry(&release.app).or_default().push(release);
    }
    for mut releases in releases.into_values() {
        releases.sort_by_key(|release| std::cmp::Reverse(release.version));
        let newest = releases.into_iter().take(RELEASES_KEPT);
        found.extend(newest.filter_map(|release| Reference::parse(&release.image).digest));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::keeper::Change;
    use crate::server::records::tests as records;

    fn release(app: &str, version: u64, image: &str) -> Change {
        let image = format!("registry.perch/{app}:d@sha256:{image}");
        Change::PutRelease(Box::new(records::release(app, version, &image)))
    }

    #[test]
    fn machines_and_the_newest_ten_releases_of_each_app_keep_their_images() {
        let mut catalog = Catalog::default();
        for version in 1..=12 {
            catalog.apply(release("web", version, &format!("w{version}")));
        }
        catalog.apply(release("old", 1, "o1"));
        let mut machine = records::machine("m1");
        machine.image = "sha256:w1".to_owned();
        catalog.apply(Change::PutMachine(Box::new(machine)));
        let found = referred_to(&catalog);
        for kept in ["w1", "w3", "w12", "o1"] {
            assert!(found.contains(&format!("sha256:{kept}")), "{kept}: {found:?}");
        }
        assert!(!found.contains("sha256:w2"), "{found:?}");
    }

    #[test]
    fn a_release_of_a_stranger_that_names_no_digest_keeps_nothing() {
        let mut catalog = Catalog::default();
        let record = records::release("web", 1, "nginx:latest");
        catalog.apply(Change::PutRelease(Box::new(record)));
        assert_eq!(referred_to(&catalog), BTreeSet::new());
    }
}
