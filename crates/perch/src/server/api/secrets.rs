//! Secrets: values come in and are sealed; names and digests go out.

use std::collections::BTreeMap;
use std::sync::Arc;

use perch_api::wire::{ApiError, Secret, SecretValue, SecretsAnswer, UpdateSecrets};

use crate::server::clock;
use crate::server::keeper::{Catalog, Change};
use crate::server::launching;
use crate::server::records::{AppRecord, SecretRecord};
use crate::server::secrets::vault::{Key, Place};
use crate::server::secrets::{self, refused};
use crate::server::world::World;

/// flyctl reads at most so much from standard input; the kernel takes twice as much in one variable.
const VALUE_BYTES_MAX: usize = 64 * 1024;
/// The kernel takes four times as much for arguments and environment of a program together.
const ALL_BYTES_MAX: usize = 512 * 1024;
const NAME_BYTES_MAX: usize = 128;

/// Lists an app's secrets by name.
pub(crate) fn list(world: &World, app: &str, min_version: u64) -> Result<Vec<Secret>, ApiError> {
    let catalog = world.keeper.read();
    let record = catalog.app(app)?;
    secrets::check_version(app, record.secrets_version, min_version)?;
    Ok(wire_secrets(&catalog, record))
}

fn wire_secrets(catalog: &Catalog, app: &AppRecord) -> Vec<Secret> {
    let wire = |record: &SecretRecord| Secret {
        name: record.name.clone(),
        digest: record.digest.clone(),
        created_at: record.created_at.clone(),
        updated_at: record.updated_at.clone(),
        machines: Some(
            catalog.machines_of(&app.name).filter(|it| record.version <= it.secrets).count(),
        ),
    };
    secrets::at(catalog, &app.name, app.secrets_version).map(wire).collect()
}

/// Sets and unsets, all or none.
pub(crate) async fn update(
    world: Arc<World>,
    app: String,
    input: UpdateSecrets,
) -> Result<SecretsAnswer, ApiError> {
    check(&input)?;
    let keeper = world.keeper.clone();
    let decided = tokio::task::spawn_blocking(move || {
        let is_first = || !world.keeper.read().secrets.values().any(|it| it.value.is_some());
        world.keeper.read().staying_app(&app)?;
        let key = match input.values.values().any(Option::is_some) {
            true => Some(world.vault.key_or_new(is_first).map_err(|error| refused(&error))?),
            // What is unset needs no key: it may be lost.
            false => None,
        };
        let now = clock::stamp();
        keeper.write_blocking(|catalog| decide(catalog, &app, &input, key.as_ref(), &now))?;
        let catalog = keeper.read();
        let record = catalog.app(&app)?;
        let (secrets, version) = (wire_secrets(&catalog, record), record.secrets_version);
        Ok(SecretsAnswer { secrets, version })
    });
    decided.await.unwrap_or_else(|error| Err(ApiError::internal(error.to_string())))
}

fn check(input: &UpdateSecrets) -> Result<(), ApiError> {
    for (name, value) in &input.values {
        check_name(name)?;
        let Some(value) = value.as_ref().map(SecretValue::reveal) else { continue };
        if VALUE_BYTES_MAX < value.len() {
            let text =
                format!("secret {name} has {} bytes; {VALUE_BYTES_MAX} are possible", value.len());
            return Err(ApiError::too_large(text));
        }
        if value.contains('\0') {
            let text = format!("secret {name} contains a NUL byte, which no environment can hold");
            return Err(ApiError::invalid(text));
        }
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), ApiError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(good) {
        return Err(ApiError::invalid(format!(
            "{name:?} cannot be a secret's name: it has 1 to {NAME_BYTES_MAX} letters, digits, `_`, `-`, `.`"
        )));
    }
    if launching::PLATFORM_VARIABLES.contains(&name) {
        return Err(ApiError::invalid(format!(
            "{name} is set by the platform; choose another name"
        )));
    }
    Ok(())
}

/// The next version of an app's secrets. Unsetting what is not set is no error, and changes nothing.
fn decide(
    catalog: &Catalog,
    app: &str,
    input: &UpdateSecrets,
    key: Option<&Key>,
    now: &str,
) -> Result<(Vec<Change>, ()), ApiError> {
    let old = catalog.staying_app(app)?;
    let version = old.secrets_version + 1;
    let set: BTreeMap<&str, &SecretRecord> = secrets::at(catalog, app, old.secrets_version)
        .map(|record| (record.name.as_str(), record))
        .collect();
    let mut puts = Vec::new();
    for (name, value) in &input.values {
        let before = set.get(name.as_str());
        if value.is_none() && before.is_none() {
            continue;
        }
        let place = Place { app, name, version };
        let sealed = value.as_ref().zip(key).map(|(value, key)| {
            (key.seal(place, value.reveal()), key.digest(app, name, value.reveal()))
        });
        let (value, digest) =
            sealed.map_or((None, String::new()), |(value, digest)| (Some(value), digest));
        puts.push(SecretRecord {
            app: app.to_owned(),
            name: name.clone(),
            version,
            bytes: input.values[name].as_ref().map_or(0, |value| value.reveal().len()),
            value,
            digest,
            created_at: before.map_or(now, |before| &before.created_at).to_owned(),
            updated_at: now.to_owned(),
        });
    }
    if puts.is_empty() {
        return Ok((Vec::new(), ()));
    }
    check_sum(&set, &puts)?;
    let mut after: Vec<&SecretRecord> = catalog.secrets_of(app).chain(&puts).collect();
    after.sort_by(|a, b| (&a.name, a.version).cmp(&(&b.name, b.version)));
    let forgotten = secrets::forgettable(&after, &secrets::used(catalog, app, None, None));
    let is_kept = |it: &SecretRecord| {
        !forgotten
            .iter()
            .any(|change| matches!(change, Change::DeleteSecret(key) if *key == it.key()))
    };
    let mut changes = vec![Change::PutApp(AppRecord { secrets_version: version, ..old.clone() })];
    let kept = puts.iter().filter(|it| is_kept(it)).cloned();
    changes.extend(kept.map(|it| Change::PutSecret(Box::new(it))));
    let stored = |change: &Change| matches!(change, Change::DeleteSecret(key) if catalog.secrets.contains_key(key));
    changes.extend(forgotten.iter().filter(|change| stored(change)).cloned());
    Ok((changes, ()))
}

fn check_sum(set: &BTreeMap<&str, &SecretRecord>, puts: &[SecretRecord]) -> Result<(), ApiError> {
    let changed = |name: &str| puts.iter().any(|it| it.name == name);
    let stay = set.values().filter(|it| !changed(&it.name)).copied();
    let sum: usize = stay.chain(puts).map(|it| it.name.len() + it.bytes).sum();
    if ALL_BYTES_MAX < sum {
        return Err(ApiError::too_large(format!(
            "the app's secrets would have {sum} bytes together; {ALL_BYTES_MAX} are possible"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::records::{MachineRecord, tests as records};
    use crate::server::secrets::vault::Vault;

    fn input(values: &[(&str, Option<&str>)]) -> UpdateSecrets {
        let value = |value: &Option<&str>| value.map(SecretValue::new);
        UpdateSecrets {
            values: values.iter().map(|(name, it)| ((*name).to_owned(), value(it))).collect(),
        }
    }

    /// A catalog with the app `web`, and a key.
    struct Fixture {
        catalog: Catalog,
        key: Key,
        _dir: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let vault = Vault::new(dir.path().join("key"));
            let mut catalog = Catalog::default();
            catalog.apply(Change::PutApp(records::app("web")));
            Self { catalog, key: vault.key_or_new(|| true).expect("made"), _dir: dir }
        }

        fn update(&mut self, values: &[(&str, Option<&str>)], now: &str) -> usize {
            let decided = decide(&self.catalog, "web", &input(values), Some(&self.key), now);
            let (changes, ()) = decided.expect("possible");
            let count = changes.len();
            changes.into_iter().for_each(|change| self.catalog.apply(change));
            count
        }

        fn listed(&self) -> Vec<Secret> {
            wire_secrets(&self.catalog, self.catalog.app("web").expect("there"))
        }

        fn machine(&mut self, id: &str) {
            let secrets = self.catalog.apps["web"].secrets_version;
            let record = MachineRecord { secrets, ..records::machine(id) };
            self.catalog.apply(Change::PutMachine(Box::new(record)));
        }
    }

    #[test]
    fn each_change_is_a_version_and_keeps_the_day_of_the_first_value() {
        let mut fixture = Fixture::new();
        fixture.update(&[("A", Some("a")), ("B", Some("b"))], "day 1");
        let first = fixture.listed();
        fixture.update(&[("A", Some("c"))], "day 2");
        let listed = fixture.listed();
        assert_eq!(fixture.catalog.apps["web"].secrets_version, 2);
        assert_eq!((&*listed[0].created_at, &*listed[0].updated_at), ("day 1", "day 2"));
        assert_ne!(listed[0].digest, first[0].digest);
        assert_eq!(listed[1], first[1]);
        assert_eq!(fixture.catalog.secrets.len(), 2, "the first value is forgotten");
    }

    #[test]
    fn a_value_that_a_machine_starts_with_stays_until_it_is_updated() {
        let mut fixture = Fixture::new();
        fixture.update(&[("A", Some("a"))], "1");
        fixture.machine("m");
        fixture.update(&[("A", Some("b"))], "2");
        assert_eq!(fixture.listed()[0].machines, Some(0), "staged");
        fixture.update(&[("A", Some("c"))], "3");
        let kept: Vec<u64> = fixture.catalog.secrets.values().map(|it| it.version).collect();
        assert_eq!(kept, [1, 3]);
        fixture.machine("m");
        assert_eq!(fixture.listed()[0].machines, Some(1), "deployed");
        fixture.update(&[("A", None)], "4");
        assert!(fixture.listed().is_empty());
        let kept: Vec<u64> = fixture.catalog.secrets.values().map(|it| it.version).collect();
        assert_eq!(kept, [3, 4]);
    }

    #[test]
    fn unsetting_what_is_not_set_changes_nothing() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.update(&[("GONE", None)], "1"), 0);
        assert_eq!(fixture.catalog.apps["web"].secrets_version, 0);
        fixture.update(&[("A", Some("a"))], "1");
        fixture.update(&[("A", None)], "2");
        assert!(fixture.catalog.secrets.is_empty(), "an unset without a value says nothing");
    }

    #[test]
    fn names_and_values_that_no_environment_can_hold_are_refused() {
        let refused =
            |name: &str, value: &str| check(&input(&[(name, Some(value))])).expect_err(name);
        for name in ["", "A=B", "A B", "A\0", "Ä", &"A".repeat(129), "FLY_APP_NAME"] {
            assert_eq!(refused(name, "x").code, 422, "{name:?}");
        }
        let error = refused("A", "hunter2\0");
        assert_eq!((error.code, error.error.contains("hunter2")), (422, false));
        assert_eq!(refused("A", &"x".repeat(64 * 1024 + 1)).code, 413);
        for name in ["FLY_API_TOKEN", "a.b-c", "_", "1"] {
            check(&input(&[(name, Some(&"x".repeat(64 * 1024)))])).expect(name);
        }
    }

    #[test]
    fn more_than_a_program_can_be_given_is_refused_as_a_whole() {
        let mut fixture = Fixture::new();
        let big = "x".repeat(64 * 1000);
        let names: Vec<String> = (0..8).map(|number| format!("N{number}")).collect();
        for name in &names {
            fixture.update(&[(name, Some(&big))], "1");
        }
        let more = input(&[("MORE", Some(&big))]);
        let error = decide(&fixture.catalog, "web", &more, Some(&fixture.key), "2");
        assert_eq!(error.expect_err("too much").code, 413);
        fixture.update(&[("MORE", Some(&big)), ("N0", None)], "2");
    }
}
