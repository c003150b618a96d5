//! Tokens: made and revoked by processes of this host, found again by what their holders send.
//!
//! A token is `perch_ID_SECRET`; the secret has 256 random bits. Kept is its SHA-256 only. A slow
//! hash would protect passwords, which can be guessed; nobody guesses 256 bits, and every request
//! has to be answered quickly.

use std::sync::Arc;
use std::time::Duration;

use perch_api::server::{Scope, TokenHolder};
use perch_api::wire::{ApiError, CreateToken, NewToken, Token};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::server::clock;
use crate::server::keeper::{Catalog, Change};
use crate::server::records::TokenRecord;
use crate::server::world::World;

/// Begins every token, so that people and secret scanners see what it is.
const PREFIX: &str = "perch_";
/// One per app and pipeline of a large installation; more is a script that never revokes.
const TOKENS_MAX: usize = 1_000;
const NAME_BYTES_MAX: usize = 64;
/// Ten years: what is meant to be longer has no end.
const EXPIRES_MAX: u64 = 10 * 366 * 24 * 3600;
/// Timers do not run while the host sleeps; the wall clock is looked at this often.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// Makes a token; its secret is in the answer and nowhere else.
pub(crate) async fn create(world: Arc<World>, input: CreateToken) -> Result<NewToken, ApiError> {
    let organizations = world.config.organizations.clone();
    let id = format!("{:012x}", clock::random() >> 16);
    let secret = format!("{PREFIX}{id}_{}", hex(&clock::random_bytes::<32>()));
    let hash = hex(&Sha256::digest(&secret));
    let now = clock::unix_secs();
    let decide = move |catalog: &Catalog| {
        let record = plan(catalog, &organizations, input, id, hash, now)?;
        Ok((vec![Change::PutToken(record.clone())], record))
    };
    let record = world.keeper.write(decide).await?;
    Ok(NewToken { token: wire_token(&record, now), secret })
}

fn plan(
    catalog: &Catalog,
    organizations: &[String],
    input: CreateToken,
    id: String,
    hash: String,
    now: i64,
) -> Result<TokenRecord, ApiError> {
    if TOKENS_MAX <= catalog.tokens.len() {
        let text =
            format!("there are {TOKENS_MAX} tokens already; revoke some with `perch token revoke`");
        return Err(ApiError::invalid(text));
    }
    let name = if input.name.is_empty() { format!("token-{id}") } else { input.name };
    check_name(catalog, &name)?;
    let org = organization(catalog, organizations, input.org, input.app.as_deref())?;
    let expires_at = input.expires_in.map(|seconds| expiry(now, seconds)).transpose()?;
    let (app, read_only) = (input.app, input.read_only);
    Ok(TokenRecord { id, name, hash, org, app, read_only, created_at: now, expires_at })
}

fn check_name(catalog: &Catalog, name: &str) -> Result<(), ApiError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if NAME_BYTES_MAX < name.len() || !name.bytes().all(good) || name.starts_with('.') {
        return Err(ApiError::invalid(format!(
            "{name:?} cannot be a token's name: it has 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_`, `.`"
        )));
    }
    if catalog.tokens.values().any(|token| token.name == name || token.id == name) {
        return Err(ApiError::invalid(format!("there is a token {name} already; revoke it first"))
            .with_word("name_taken"));
    }
    Ok(())
}

/// The organization that the token is bound to: the named one, or that of its app, so that another
/// organization's later app of the same name is none of its business.
fn organization(
    catalog: &Catalog,
    organizations: &[String],
    org: Option<String>,
    app: Option<&str>,
) -> Result<Option<String>, ApiError> {
    if let Some(org) = org.as_ref().filter(|org| !organizations.contains(org)) {
        let all = organizations.join(", ");
        return Err(ApiError::not_found(format!(
            "there is no organization {org:?}; there is: {all}"
        )));
    }
    let Some(app) = app else { return Ok(org) };
    let of_app = &catalog.app(app)?.org;
    match org {
        Some(org) if org != *of_app => {
            Err(ApiError::invalid(format!("app {app} belongs to {of_app}, not to {org}")))
        }
        Some(_) | None => Ok(Some(of_app.clone())),
    }
}

fn expiry(now: i64, seconds: u64) -> Result<i64, ApiError> {
    if !(1..=EXPIRES_MAX).contains(&seconds) {
        return Err(ApiError::invalid(
            "a token lasts between 1s and ten years; leave its end out for ever",
        ));
    }
    Ok(now.saturating_add_unsigned(seconds))
}

/// Lists tokens by name.
pub(crate) fn list(world: &World) -> Vec<Token> {
    let now = clock::unix_secs();
    let catalog = world.keeper.read();
    let mut tokens: Vec<_> = catalog.tokens.values().map(|it| wire_token(it, now)).collect();
    tokens.sort_by(|a, b| a.name.cmp(&b.name));
    tokens
}

/// Ends a token for good.
pub(crate) async fn revoke(world: Arc<World>, token: String) -> Result<(), ApiError> {
    let decide = move |catalog: &Catalog| {
        let found = catalog.tokens.values().find(|it| it.id == token || it.name == token);
        let found = found.ok_or_else(|| {
            ApiError::not_found(format!("there is no token {token}; see `perch token list`"))
        })?;
        Ok((vec![Change::DeleteToken(found.id.clone())], ()))
    };
    world.keeper.write(decide).await
}

/// The holder of a token that is good now.
pub(crate) fn authenticate(catalog: &Catalog, secret: &str, now: i64) -> Option<TokenHolder> {
    let (id, _) = secret.strip_prefix(PREFIX)?.split_once('_')?;
    let record = catalog.tokens.get(id).filter(|record| is_live(record, now))?;
    same(&hex(&Sha256::digest(secret)), &record.hash).then(|| TokenHolder {
        id: record.id.clone(),
        name: record.name.clone(),
        scope: Scope {
            org: record.org.clone(),
            app: record.app.clone(),
            read_only: record.read_only,
        },
    })
}

/// Compares in the same time wherever the first difference is.
fn same(a: &str, b: &str) -> bool {
    let differences = a.bytes().zip(b.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
    a.len() == b.len() && std::hint::black_box(differences) == 0
}

fn is_live(record: &TokenRecord, now: i64) -> bool {
    record.expires_at.is_none_or(|end| now < end)
}

/// Resolves when the token is revoked or its time is over.
pub(crate) async fn ended(world: &World, mut changes: watch::Receiver<()>, id: &str) {
    loop {
        changes.mark_unchanged();
        let Some(left) = time_left(&world.keeper.read(), id, clock::unix_secs()) else { return };
        tokio::select! {
            () = tokio::time::sleep(left.min(LOOK_INTERVAL)) => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

fn time_left(catalog: &Catalog, id: &str, now: i64) -> Option<Duration> {
    let record = catalog.tokens.get(id).filter(|record| is_live(record, now))?;
    let left = record.expires_at.map_or(i64::MAX, |end| end.saturating_sub(now));
    Some(Duration::from_secs(left.unsigned_abs()))
}

fn wire_token(record: &TokenRecord, now: i64) -> Token {
    Token {
        id: record.id.clone(),
        name: record.name.clone(),
        org: record.org.clone(),
        app: record.app.clone(),
        read_only: record.read_only,
        created_at: clock::stamp_at(record.created_at),
        expires_at: record.expires_at.map(clock::stamp_at),
        expired: !is_live(record, now),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::records::tests as records;

    const SECRET: &str = "perch_00000000000a_ff";

    fn catalog() -> Catalog {
        let mut catalog = Catalog::default();
        catalog.apply(Change::PutApp(records::app("web")));
        catalog
    }

    fn planned(catalog: &Catalog, input: CreateToken) -> Result<TokenRecord, ApiError> {
        let organizations = ["personal".to_owned(), "team".to_owned()];
        let hash = hex(&Sha256::digest(SECRET));
        plan(catalog, &organizations, input, "00000000000a".to_owned(), hash, 100)
    }

    fn named(name: &str) -> CreateToken {
        CreateToken { name: name.to_owned(), ..CreateToken::default() }
    }

    fn check_refused(input: CreateToken, code: u16, words: &str) {
        let error = planned(&catalog(), input).expect_err(words);
        assert_eq!(error.code, code, "{error}");
        assert!(error.error.contains(words), "{error} lacks {words}");
    }

    #[test]
    fn a_token_that_could_not_be_used_or_told_apart_is_not_made() {
        let app = |app: &str| Some(app.to_owned());
        check_refused(named("a b"), 422, "a b");
        check_refused(named(&"a".repeat(65)), 422, "1 to 64");
        check_refused(CreateToken { org: app("x"), ..named("a") }, 404, "personal, team");
        check_refused(CreateToken { app: app("none"), ..named("a") }, 404, "none");
        let both = CreateToken { app: app("web"), org: app("team"), ..named("a") };
        check_refused(both, 422, "belongs to personal");
        check_refused(CreateToken { expires_in: Some(0), ..named("a") }, 422, "1s");
        check_refused(CreateToken { expires_in: Some(u64::MAX), ..named("a") }, 422, "ten years");
        let mut catalog = catalog();
        catalog.apply(Change::PutToken(planned(&catalog, named("a")).expect("free")));
        assert_eq!(planned(&catalog, named("a")).expect_err("taken").code, 422);
        assert_eq!(planned(&catalog, named("00000000000a")).expect_err("an id").code, 422);
    }

    #[test]
    fn a_token_of_an_app_is_bound_to_its_organization() {
        let token = planned(&catalog(), CreateToken { app: Some("web".to_owned()), ..named("") });
        let token = token.expect("an app that is there");
        assert_eq!(token.org.as_deref(), Some("personal"));
        assert_eq!(token.name, "token-00000000000a");
    }

    #[test]
    fn only_the_whole_secret_of_a_live_token_is_good() {
        let mut catalog = catalog();
        let input = CreateToken { expires_in: Some(10), ..named("a") };
        catalog.apply(Change::PutToken(planned(&catalog, input).expect("free")));
        let good = |secret: &str, now| authenticate(&catalog, secret, now).is_some();
        for bad in [
            "",
            "perch_",
            "perch__",
            "perch_00000000000a",
            "perch_00000000000a_",
            "perch_00000000000a_f",
            "perch_00000000000a_fff",
            "perch_00000000000b_ff",
            "PERCH_00000000000a_ff",
            " perch_00000000000a_ff",
        ] {
            assert!(!good(bad, 100), "{bad:?} is good");
        }
        assert!(good(SECRET, 100) && good(SECRET, 109));
        assert!(!good(SECRET, 110), "its time is over");
        catalog.apply(Change::DeleteToken("00000000000a".to_owned()));
        assert!(authenticate(&catalog, SECRET, 100).is_none(), "it is revoked");
    }

    #[test]
    fn the_secret_itself_is_not_kept() {
        let record = planned(&catalog(), named("a")).expect("free");
        let stored = serde_json::to_string(&record).expect("a record");
        assert!(!stored.contains("_ff") && stored.contains(&record.hash));
    }
}
