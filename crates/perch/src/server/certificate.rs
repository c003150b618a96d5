//! Keeps the API's certificate fresh: its files are read again when they change, and on SIGHUP.
//!
//! Certificates end every few weeks and are renewed by other programs; nobody restarts a server for
//! that. A renewal that is broken, or half done, changes nothing: the old pair stays, it is said why,
//! and the next change is looked at again.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use perch_api::server::Tls;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::world::World;
use crate::config::Config;

/// How often the files are looked at: two calls of `stat`.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// What tells that a file is another one: number, length, time of change.
type Mark = Option<(u64, u64, i64, i64)>;

/// Replaces what `tls` shows whenever there is something new, until the server ends.
pub(crate) async fn keep_fresh(world: Arc<World>, tls: Option<Tls>) {
    let hangup = signal(SignalKind::hangup());
    let Some(tls) = tls else { return };
    let mut hangup = match hangup {
        Ok(hangup) => Some(hangup),
        Err(error) => {
            tracing::warn!(%error, "SIGHUP is not heard; certificates are read when they change");
            None
        }
    };
    let mut seen = marks(&world.config);
    loop {
        let asked = tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => false,
            () = heard(&mut hangup) => true,
            () = world.closing.cancelled() => return,
        };
        let now = marks(&world.config);
        if asked || now != seen {
            renew(&world.config, &tls);
        }
        seen = now;
    }
}

async fn heard(hangup: &mut Option<Signal>) {
    match hangup {
        Some(hangup) => drop(hangup.recv().await),
        None => std::future::pending().await,
    }
}

fn renew(config: &Config, tls: &Tls) {
    match config.api_tls() {
        Ok(Some(new)) => {
            tls.replace(&new);
            tracing::info!("the API's certificate was read again");
        }
        Ok(None) => {}
        Err(error) => {
            let error = format!("{error:#}");
            tracing::error!(error, "the API goes on with its old certificate");
        }
    }
}

fn marks(config: &Config) -> [Mark; 2] {
    [&config.api_certificate, &config.api_key].map(|file| file.as_deref().and_then(mark))
}

/// Behind symlinks, as renewing programs use them.
fn mark(file: &Path) -> Mark {
    let found = fs::metadata(file).ok()?;
    Some((found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
}
