//! A Machine that is suspended soon after nobody needs it, with the test as its server.

use std::time::Duration;

use super::world::*;
use crate::control::{AppView, Autostop, FromProxy, StartOutcome, StopOutcome, ToProxy};

/// How long nothing must move until the Machine may sleep.
const AFTER: Duration = Duration::from_millis(200);
/// Who is awake after this stays awake.
pub(super) const LONG: Duration = Duration::from_millis(800);

pub(super) fn napping(port: u16) -> AppView {
    let mut view = app("started", port);
    for service in &mut view.machines[0].services {
        service.autostop = Autostop::Suspend;
        service.auto_stop_after_ms = AFTER.as_millis() as u64;
    }
    view
}

/// The same, but stopped where the other is suspended.
pub(super) fn stopping(port: u16) -> AppView {
    let mut view = napping(port);
    view.machines[0].services.iter_mut().for_each(|s| s.autostop = Autostop::Stop);
    view
}

impl World {
    /// Waits until the proxy wants the Machine to sleep, and suspends it.
    pub(super) async fn suspend(&mut self, view: &mut AppView) {
        let FromProxy::Stop { machine, attempt, .. } = self.heard().await else {
            panic!("a stop was expected");
        };
        let outcome = StopOutcome::Suspended;
        self.send(ToProxy::StopDone { machine, attempt, outcome }).await;
        self.show(view, "suspended").await;
    }

    /// Waits until somebody wakes it, and does that.
    pub(super) async fn thaw(&mut self, view: &mut AppView) {
        let FromProxy::Start { machine, attempt, .. } = self.heard().await else {
            panic!("a start was expected");
        };
        let outcome = StartOutcome::Started { run: view.machines[0].run };
        self.send(ToProxy::StartDone { machine, attempt, outcome }).await;
        self.show(view, "started").await;
    }

    /// Tells that it is in this state now.
    pub(super) async fn show(&mut self, view: &mut AppView, state: &str) {
        view.machines[0].state = state.to_owned();
        view.revision += 1;
        self.send(ToProxy::App(view.clone())).await;
    }

    /// Nobody stops or wakes anything for a while.
    pub(super) async fn hears_nothing(&mut self) {
        let heard = tokio::time::timeout(LONG, self.heard()).await;
        assert!(heard.is_err(), "{heard:?}");
    }
}
