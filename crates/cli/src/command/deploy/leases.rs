//! The leases of a deploy: taken before anything changes, kept alive while it works, given back.

use super::super::Context;
use crate::failure::{Failure, Outcome};
use perch_api::wire::{LeaseData, LeaseInput};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

/// Leases are refreshed this many times within their length (MA-63).
const REFRESHES_PER_LEASE: u32 = 3;

/// Between two refreshes of a lease of this length.
pub(super) fn refresh_pause(length: Duration) -> Duration {
    length.saturating_sub(Duration::from_secs(1)) / REFRESHES_PER_LEASE
}

/// Nonces by Machine. One deploy runs on one thread, so a cell is enough.
#[derive(Debug)]
pub(in crate::command) struct Leases {
    nonces: RefCell<BTreeMap<String, String>>,
    length: Duration,
    description: String,
}

impl Leases {
    pub(in crate::command) fn new(length: Duration, description: String) -> Self {
        Self { nonces: RefCell::default(), length, description }
    }

    /// Takes the leases of these Machines in this order. When one is held by somebody else, those taken
    /// are given back and the failure says who has it.
    pub(in crate::command) async fn acquire(
        &self,
        context: &Context<'_>,
        app: &str,
        ids: &[&str],
    ) -> Outcome {
        for id in ids {
            context.interrupt.check()?;
            match context.client.acquire_lease(app, id, &self.input()).await {
                Ok(lease) => self.insert(id, lease.data.nonce),
                Err(error) => {
                    self.release_all(context, app).await;
                    return Err(refused(context, app, id, error).await);
                }
            }
        }
        Ok(())
    }

    pub(super) fn input(&self) -> LeaseInput {
        LeaseInput { ttl: self.length.as_secs(), description: self.description.clone() }
    }

    pub(super) fn insert(&self, id: &str, nonce: String) {
        self.nonces.borrow_mut().insert(id.to_owned(), nonce);
    }

    pub(in crate::command) fn nonce(&self, id: &str) -> Option<String> {
        self.nonces.borrow().get(id).cloned()
    }

    /// A Machine that is gone has no lease to give back.
    pub(in crate::command) fn forget(&self, id: &str) {
        self.nonces.borrow_mut().remove(id);
    }

    /// Refreshes all leases for ever. A lease that is lost shows at the next change, which the server
    /// then refuses; here it is only said.
    pub(in crate::command) async fn keep_alive(
        &self,
        context: &Context<'_>,
        app: &str,
    ) -> std::convert::Infallible {
        let pause = refresh_pause(self.length);
        loop {
            tokio::time::sleep(pause).await;
            let held: Vec<_> = self.nonces.borrow().clone().into_iter().collect();
            for (id, nonce) in held {
                let refreshed = context.client.refresh_lease(app, &id, &self.input(), &nonce).await;
                if let Err(error) = refreshed
                    && self.nonce(&id).is_some()
                {
                    context.console.note(format!("could not refresh the lease on {id}: {error}"));
                }
            }
        }
    }

    pub(super) async fn release(&self, context: &Context<'_>, app: &str, id: &str) {
        let Some(nonce) = self.nonces.borrow_mut().remove(id) else { return };
        if let Err(error) = context.client.release_lease(app, id, &nonce).await {
            let text = format!("could not give back the lease on {id}; it ends by itself: {error}");
            context.console.note(text);
        }
    }

    pub(in crate::command) async fn release_all(&self, context: &Context<'_>, app: &str) {
        let held: Vec<_> = self.nonces.borrow().keys().cloned().collect();
        for id in held {
            self.release(context, app, &id).await;
        }
    }
}

/// Says who holds a lease and until when, if the server knows more than its refusal told.
async fn refused(
    context: &Context<'_>,
    app: &str,
    id: &str,
    error: perch_api::ClientError,
) -> Failure {
    let conflict = error.status() == Some(409);
    let failure = Failure::from(error).context(format!("could not lease machine {id}"));
    if !conflict {
        return failure;
    }
    let held = context.client.get_lease(app, id).await.map(|lease| holder(&lease.data));
    let who = held.unwrap_or_else(|_| "somebody else".to_owned());
    failure.hint(changing(&who))
}

/// What to do when somebody else is at work.
pub(super) fn changing(who: &str) -> String {
    format!("{who} is changing this app; nothing was deployed. Try again when it is done")
}

fn holder(lease: &LeaseData) -> String {
    let until = jiff::Timestamp::from_second(lease.expires_at)
        .map(|time| time.strftime("%H:%M:%S UTC").to_string())
        .unwrap_or_default();
    match lease.description.is_empty() {
        true => format!("{} (until {until} unless refreshed)", lease.owner),
        false => {
            format!("{} with `{}` (until {until} unless refreshed)", lease.owner, lease.description)
        }
    }
}
