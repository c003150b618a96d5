//! What the server asks the proxy that has the listeners: who is served just now, and what was served.
//!
//! One question at a time, and each costs the proxy little. Callers whom a retired proxy still serves are not told.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use perch_proxy::control::{AppCounts, Live, ToProxy};
use tokio::sync::oneshot;

use super::world::lock;

/// A proxy that lives answers at once; an older one does not understand the question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    /// Held by who asks.
    asking: tokio::sync::Mutex<()>,
    asked: Mutex<Option<Asked>>,
    last_token: AtomicU64,
}

/// A question that is not answered.
#[derive(Debug)]
struct Asked {
    token: u64,
    /// What has come of the answer.
    counts: Vec<AppCounts>,
    answer: oneshot::Sender<Answered>,
}

#[derive(Debug)]
enum Answered {
    Live(Option<Live>),
    Counts(Vec<AppCounts>),
}

impl Questions {
    /// What an app is awake for just now; `None`: no proxy says so in time, or it does not know the app. `send` says
    /// whether somebody hears it.
    pub(crate) async fn live(
        &self,
        app: &str,
        callers_max: u32,
        send: impl FnOnce(ToProxy) -> bool,
    ) -> Option<Live> {
        let app = app.to_owned();
        match self.ask(|token| send(ToProxy::Live { app, token, callers_max })).await? {
            Answered::Live(live) => live,
            Answered::Counts(_) => None,
        }
    }

    /// What was served of all apps; `None` as for [`Self::live`].
    pub(crate) async fn counts(
        &self,
        send: impl FnOnce(ToProxy) -> bool,
    ) -> Option<Vec<AppCounts>> {
        match self.ask(|token| send(ToProxy::Counts { token })).await? {
            Answered::Counts(counts) => Some(counts),
            Answered::Live(_) => None,
        }
    }

    async fn ask(&self, send: impl FnOnce(u64) -> bool) -> Option<Answered> {
        let _turn = self.asking.lock().await;
        let token = self.last_token.fetch_add(1, Ordering::Relaxed) + 1;
        let (answer, heard) = oneshot::channel();
        *lock(&self.asked) = Some(Asked { token, counts: Vec::new(), answer });
        if !send(token) {
            return None;
        }
        tokio::time::timeout(ANSWER_TIMEOUT, heard).await.ok()?.ok()
    }

    pub(crate) fn answered_live(&self, token: u64, live: Option<Live>) {
        let asked = lock(&self.asked).take_if(|asked| asked.token == token);
        if let Some(Asked { answer, .. }) = asked {
            // Who asked may have gone.
            answer.send(Answered::Live(live)).ok();
        }
    }

    /// A part of the answer.
    pub(crate) fn answered_counts(&self, token: u64, apps: Vec<AppCounts>, last: bool) {
        let mut waits = lock(&self.asked);
        let Some(asked) = waits.as_mut().filter(|asked| asked.token == token) else { return };
        asked.counts.extend(apps);
        if let Some(Asked { counts, answer, .. }) = waits.take_if(|_| last) {
            // Who asked may have gone.
            answer.send(Answered::Counts(counts)).ok();
        }
    }

    /// Nobody will answer any more.
    pub(crate) fn forget(&self) {
        *lock(&self.asked) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(app: &str) -> AppCounts {
        let (app, answers, own) = (app.to_owned(), [0; 5], [0; 5]);
        AppCounts { app, concurrency: 0, answers, own, connects: 1, disconnects: 0 }
    }

    #[tokio::test]
    async fn an_answer_in_parts_is_whole_with_its_last_and_an_older_one_is_nobodys() {
        let questions = Questions::default();
        let told = questions.counts(|question| {
            let ToProxy::Counts { token } = question else { panic!("{question:?}") };
            questions.answered_counts(token + 1, vec![counts("other")], true);
            questions.answered_live(token + 1, None);
            questions.answered_counts(token, vec![counts("a")], false);
            questions.answered_counts(token, vec![counts("b")], true);
            true
        });
        let apps: Vec<_> = told.await.expect("an answer").into_iter().map(|it| it.app).collect();
        assert_eq!(apps, ["a", "b"]);
    }

    #[tokio::test]
    async fn without_a_proxy_nobody_waits() {
        let questions = Questions::default();
        assert_eq!(questions.live("a", 1, |_| false).await, None);
        let gone = questions.live("a", 1, |_| {
            questions.forget();
            true
        });
        assert_eq!(gone.await, None);
    }
}
