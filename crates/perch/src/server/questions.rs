//! What the server asks proxies: who is served just now, and what was served.
//!
//! One question at a time, and each costs a proxy little. Who is served is asked of all of them; one that was retired and
//! does not answer soon is left out. What was served is only told by the one that has the listeners.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use perch_proxy::control::{AppCounts, Live, ToProxy};
use tokio::sync::oneshot;

use super::proxy_port::Which;
use super::world::lock;

/// A proxy that lives answers at once; an older one does not understand the question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The same of retired ones, without which the answer is almost whole.
const RETIRED_TIMEOUT: Duration = Duration::from_millis(250);

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
    live: BTreeMap<Which, Option<Live>>,
    waits_for: BTreeSet<Which>,
    answer: oneshot::Sender<Answered>,
}

#[derive(Debug)]
enum Answered {
    Live(BTreeMap<Which, Option<Live>>),
    Counts(Vec<AppCounts>),
}

impl Questions {
    /// What an app is awake for just now; `None`: the current proxy, one of `whom`, does not say so in time, or does not
    /// know the app. `send` says whether that one hears it.
    pub(crate) async fn live(
        &self,
        app: &str,
        callers_max: u32,
        whom: BTreeSet<Which>,
        send: impl Fn(Which, ToProxy) -> bool,
    ) -> Option<Live> {
        let question = |token| ToProxy::Live { app: app.to_owned(), token, callers_max };
        let Answered::Live(mut told) =
            self.ask(whom, |which, token| send(which, question(token))).await?
        else {
            return None;
        };
        let mut live = told.remove(&Which::Current)??;
        let callers_max = usize::try_from(callers_max).unwrap_or(usize::MAX);
        told.into_values().flatten().for_each(|retired| live.add_retired(retired, callers_max));
        Some(live)
    }

    /// What was served of all apps; `None` as for [`Self::live`].
    pub(crate) async fn counts(&self, send: impl Fn(ToProxy) -> bool) -> Option<Vec<AppCounts>> {
        let current = BTreeSet::from([Which::Current]);
        match self.ask(current, |_, token| send(ToProxy::Counts { token })).await? {
            Answered::Counts(counts) => Some(counts),
            Answered::Live(_) => None,
        }
    }

    async fn ask(
        &self,
        whom: BTreeSet<Which>,
        send: impl Fn(Which, u64) -> bool,
    ) -> Option<Answered> {
        let _turn = self.asking.lock().await;
        let token = self.last_token.fetch_add(1, Ordering::Relaxed) + 1;
        let (answer, mut heard) = oneshot::channel();
        let (counts, live, waits_for) = (Vec::new(), BTreeMap::new(), whom.clone());
        *lock(&self.asked) = Some(Asked { token, counts, live, waits_for, answer });
        let deaf: BTreeSet<Which> = whom.into_iter().filter(|it| !send(*it, token)).collect();
        if deaf.contains(&Which::Current) {
            return None;
        }
        self.wait_no_more(token, |which| deaf.contains(&which));
        if let Ok(heard) = tokio::time::timeout(RETIRED_TIMEOUT, &mut heard).await {
            return heard.ok();
        }
        self.wait_no_more(token, |which| which != Which::Current);
        tokio::time::timeout(ANSWER_TIMEOUT, heard).await.ok()?.ok()
    }

    /// The answer is whole without these.
    fn wait_no_more(&self, token: u64, of: impl Fn(Which) -> bool) {
        let mut asked = lock(&self.asked);
        if let Some(asked) = asked.as_mut().filter(|asked| asked.token == token) {
            asked.waits_for.retain(|which| !of(*which));
        }
        answer_if_told(&mut asked);
    }

    pub(crate) fn answered_live(&self, which: Which, token: u64, live: Option<Live>) {
        let mut asked = lock(&self.asked);
        if let Some(asked) = asked.as_mut().filter(|asked| asked.token == token)
            && asked.waits_for.remove(&which)
        {
            asked.live.insert(which, live);
        }
        answer_if_told(&mut asked);
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

/// All have said whom they serve.
fn answer_if_told(asked: &mut Option<Asked>) {
    if let Some(Asked { live, answer, .. }) = asked.take_if(|asked| asked.waits_for.is_empty()) {
        // Who asked may have gone.
        answer.send(Answered::Live(live)).ok();
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
            questions.answered_live(Which::Current, token + 1, None);
            questions.answered_counts(token, vec![counts("a")], false);
            questions.answered_counts(token, vec![counts("b")], true);
            true
        });
        let apps: Vec<_> = told.await.expect("an answer").into_iter().map(|it| it.app).collect();
        assert_eq!(apps, ["a", "b"]);
    }

    #[tokio::test]
    async fn callers_of_retired_proxies_are_told_too_and_one_that_says_nothing_is_left_out() {
        let questions = Questions::default();
        let whom = [Which::Current, Which::Retired(1), Which::Retired(2), Which::Retired(3)];
        let told = questions.live("a", 1, BTreeSet::from(whom), |which, question| {
            let ToProxy::Live { token, .. } = question else { panic!("{question:?}") };
            let waiting = match which {
                Which::Current => 1,
                Which::Retired(1) => 2,
                Which::Retired(2) => return true,
                Which::Retired(_) => return false,
            };
            questions.answered_live(which, token, Some(Live { waiting, ..Live::default() }));
            true
        });
        assert_eq!(told.await.expect("the current one has answered").waiting, 1 + 2);
    }

    #[tokio::test]
    async fn without_a_proxy_nobody_waits() {
        let questions = Questions::default();
        let whom = BTreeSet::from([Which::Current, Which::Retired(1)]);
        let is_retired = |which: Which, _: ToProxy| which != Which::Current;
        assert_eq!(questions.live("a", 1, whom.clone(), is_retired).await, None);
        let gone = questions.live("a", 1, whom, |_, _| {
            questions.forget();
            true
        });
        assert_eq!(gone.await, None);
    }
}
