//! Secrets of apps: which values there are, and which a Machine starts with.
//!
//! Each change of an app's secrets has a version. A Machine keeps the version of its last create or update and starts
//! with the values of then, however often it sleeps and wakes meanwhile: what is staged waits for a deploy. A value
//! that no Machine starts with any more, and that is not the newest, is forgotten with the change that made it so.

pub(crate) mod vault;

use std::collections::BTreeSet;

use perch_api::wire::{ApiError, LaunchInput};
use perch_machine::Secrets;

use super::keeper::{Catalog, Change};
use super::records::{MachineRecord, SecretRecord};
use super::world::World;
use vault::{Place, Vault, VaultError};

/// The version with which a Machine that is made or updated now starts; 0 is none.
///
/// # Errors
/// When the client knows of a version that is not there.
pub(crate) fn pin(catalog: &Catalog, app: &str, input: &LaunchInput) -> Result<u64, ApiError> {
    let current = catalog.app(app)?.secrets_version;
    check_version(app, current, input.min_secrets_version)?;
    Ok(if input.skip_secrets { 0 } else { current })
}

/// # Errors
/// When a version is asked for that is not there yet.
pub(crate) fn check_version(app: &str, current: u64, wanted: u64) -> Result<(), ApiError> {
    if current < wanted {
        return Err(ApiError::invalid(format!(
            "app {app} has secrets of version {current}; there is no version {wanted}"
        )));
    }
    Ok(())
}

/// What is set in a version of an app's secrets, by name.
pub(crate) fn at<'a>(
    catalog: &'a Catalog,
    app: &'a str,
    version: u64,
) -> impl Iterator<Item = &'a SecretRecord> {
    let old = catalog.secrets_of(app).filter(move |it| it.version <= version);
    let mut newest: Vec<&SecretRecord> = Vec::new();
    for record in old {
        match newest.last_mut() {
            Some(last) if last.name == record.name => *last = record,
            Some(_) | None => newest.push(record),
        }
    }
    newest.into_iter().filter(|record| record.value.is_some())
}

/// Forgets of an app's values, in order, what neither the newest version nor one of these needs.
pub(crate) fn forgettable(records: &[&SecretRecord], used: &BTreeSet<u64>) -> Vec<Change> {
    let mut changes = Vec::new();
    // Whether an older value of the same name stays: an unset without one says nothing.
    let mut hides = false;
    for (at, record) in records.iter().enumerate() {
        let first = at == 0 || records[at - 1].name != record.name;
        hides &= !first;
        let next = records.get(at + 1).filter(|next| next.name == record.name);
        let until = next.map_or(u64::MAX, |next| next.version);
        let needed = next.is_none() || used.range(record.version..until).next().is_some();
        if needed && (record.value.is_some() || hides) {
            hides = true;
        } else {
            changes.push(Change::DeleteSecret(record.key()));
        }
    }
    changes
}

/// Forgets what nobody needs once a Machine has changed, or gone.
pub(crate) fn forgotten_with(
    catalog: &Catalog,
    app: &str,
    changed: Option<&MachineRecord>,
    gone: Option<&str>,
) -> Vec<Change> {
    let records: Vec<_> = catalog.secrets_of(app).collect();
    forgettable(&records, &used(catalog, app, changed, gone))
}

/// The versions that the Machines of an app start with, as if one of them were different or gone.
pub(crate) fn used(
    catalog: &Catalog,
    app: &str,
    changed: Option<&MachineRecord>,
    gone: Option<&str>,
) -> BTreeSet<u64> {
    let changed_id = changed.map(|record| record.id.as_str());
    let others = catalog.machines_of(app).filter(|it| {
        let id = Some(it.id.as_str());
        id != changed_id && id != gone
    });
    others.chain(changed).map(|record| record.secrets).collect()
}

/// What a Machine starts with, sealed. To be taken together with its record: a later one may have let it be forgotten.
pub(crate) fn of_machine(catalog: &Catalog, machine: &MachineRecord) -> Vec<SecretRecord> {
    at(catalog, &machine.app, machine.secrets).cloned().collect()
}

/// Opens values. Reads the key, if there is anything to open.
///
/// # Errors
/// When the key is missing or wrong, or a value damaged; the text says what to do.
pub(crate) fn open(vault: &Vault, records: &[SecretRecord]) -> Result<Secrets, VaultError> {
    if records.is_empty() {
        return Ok(Secrets::default());
    }
    let key = vault.key()?;
    let opened = records.iter().filter_map(|it| {
        let place = Place { app: &it.app, name: &it.name, version: it.version };
        let value = vault.open(&key, place, it.value.as_ref()?);
        Some(value.map(|value| (it.name.clone(), value)))
    });
    Ok(Secrets::new(opened.collect::<Result<_, _>>()?))
}

/// Refuses a start of which it is clear already that it will fail for its secrets.
///
/// # Errors
/// As [`open`], for whoever asked for the start.
pub(crate) async fn check_opens(
    world: &std::sync::Arc<World>,
    app: &str,
    version: u64,
) -> Result<(), ApiError> {
    let records: Vec<_> = at(&world.keeper.read(), app, version).cloned().collect();
    let world = world.clone();
    let opened = tokio::task::spawn_blocking(move || open(&world.vault, &records).map(drop)).await;
    let opened = opened.map_err(|error| ApiError::internal(error.to_string()))?;
    opened.map_err(|error| refused(&error))
}

/// What the vault's owner has to put right.
pub(crate) fn refused(error: &VaultError) -> ApiError {
    ApiError::internal(super::images::chain(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::records::tests as records;

    fn catalog(secrets: &[(&str, u64, Option<&str>)]) -> Catalog {
        let mut catalog = Catalog::default();
        catalog.apply(Change::PutApp(records::app("web")));
        for (name, version, value) in secrets {
            let record = records::secret("web", name, *version, *value);
            catalog.apply(Change::PutSecret(Box::new(record)));
        }
        // Names and apps that begin alike are others.
        catalog.apply(Change::PutSecret(Box::new(records::secret("web-2", "A", 1, Some("x")))));
        catalog
    }

    fn names(catalog: &Catalog, version: u64) -> Vec<(String, u64)> {
        at(catalog, "web", version).map(|it| (it.name.clone(), it.version)).collect()
    }

    fn check(secrets: &[(&str, u64, Option<&str>)], used: &[u64], forgotten: &[(&str, u64)]) {
        let mut catalog = catalog(secrets);
        let newest = secrets.iter().map(|it| it.1).max().unwrap_or(0);
        let versions = || used.iter().copied().chain([newest]);
        let before: Vec<_> = versions().map(|version| names(&catalog, version)).collect();
        let records: Vec<_> = catalog.secrets_of("web").collect();
        let changes = forgettable(&records, &used.iter().copied().collect());
        let gone: Vec<_> = changes
            .iter()
            .map(|change| match change {
                Change::DeleteSecret((_, name, version)) => (name.as_str(), *version),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(gone, forgotten, "{secrets:?} used at {used:?}");
        changes.iter().for_each(|change| catalog.apply(change.clone()));
        let after: Vec<_> = versions().map(|version| names(&catalog, version)).collect();
        assert_eq!(before, after, "what is in use changed: {secrets:?} used at {used:?}");
    }

    #[test]
    fn a_version_has_the_values_that_were_set_until_then() {
        let secrets =
            [("A", 1, Some("a")), ("A", 3, Some("b")), ("B", 2, Some("c")), ("B", 4, None)];
        let catalog = catalog(&secrets);
        let expected = |list: &[(&str, u64)]| -> Vec<(String, u64)> {
            list.iter().map(|(name, version)| ((*name).to_owned(), *version)).collect()
        };
        assert_eq!(names(&catalog, 0), []);
        assert_eq!(names(&catalog, 1), expected(&[("A", 1)]));
        assert_eq!(names(&catalog, 2), expected(&[("A", 1), ("B", 2)]));
        assert_eq!(names(&catalog, 3), expected(&[("A", 3), ("B", 2)]));
        assert_eq!(names(&catalog, 9), expected(&[("A", 3)]));
    }

    #[test]
    fn a_value_is_forgotten_when_no_machine_starts_with_it_any_more() {
        let two = [("A", 1, Some("a")), ("A", 3, Some("b"))];
        check(&two, &[], &[("A", 1)]);
        check(&two, &[0], &[("A", 1)]);
        check(&two, &[3], &[("A", 1)]);
        check(&two, &[2, 3], &[]);
        let unset = [("A", 1, Some("a")), ("A", 3, None)];
        check(&unset, &[1], &[]);
        check(&unset, &[3], &[("A", 1), ("A", 3)]);
        let again = [("A", 1, Some("a")), ("A", 3, None), ("A", 5, Some("b")), ("B", 2, Some("x"))];
        check(&again, &[4], &[("A", 1), ("A", 3)]);
        check(&again, &[1, 4], &[]);
        check(&again, &[1, 5], &[("A", 3)]);
    }

    #[test]
    fn a_machine_keeps_its_version_and_one_that_is_not_there_is_refused() {
        let mut catalog = catalog(&[]);
        let app = crate::server::records::AppRecord { secrets_version: 5, ..records::app("web") };
        catalog.apply(Change::PutApp(app));
        let input = |min, skip| LaunchInput {
            min_secrets_version: min,
            skip_secrets: skip,
            ..LaunchInput::new(perch_api::wire::MachineConfig::clone(
                &records::machine("m").config.read(),
            ))
        };
        assert_eq!(pin(&catalog, "web", &input(0, false)), Ok(5));
        assert_eq!(pin(&catalog, "web", &input(5, false)), Ok(5));
        assert_eq!(pin(&catalog, "web", &input(0, true)), Ok(0));
        assert_eq!(pin(&catalog, "web", &input(6, false)).expect_err("not there").code, 422);
    }

    #[test]
    fn what_a_machine_that_changes_or_goes_started_with_is_not_in_use() {
        let mut catalog = catalog(&[]);
        for (id, secrets) in [("a", 1), ("b", 2)] {
            let record = MachineRecord { secrets, ..records::machine(id) };
            catalog.apply(Change::PutMachine(Box::new(record)));
        }
        let changed = MachineRecord { secrets: 7, ..records::machine("a") };
        assert_eq!(used(&catalog, "web", None, None), [1, 2].into());
        assert_eq!(used(&catalog, "web", Some(&changed), None), [2, 7].into());
        assert_eq!(used(&catalog, "web", None, Some("b")), [1].into());
    }
}
