//! Why a Machine is down, in a sentence for its events, `fly status` and `fly logs`.

use std::time::Duration;

use perch_core::lifecycle::{Exit, RestartPolicy};

/// No server is done with its work so soon.
const SHORT: Duration = Duration::from_secs(2);

/// What is known when a run has ended that nobody asked to end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) exit: Exit,
    /// Its limit.
    pub(crate) memory_bytes: u64,
    pub(crate) policy: RestartPolicy,
    /// Restarts of the last 5 minutes, the one that follows among them.
    pub(crate) restarts: usize,
    /// Until it is started again by itself; `None`: it is not.
    pub(crate) back_off: Option<Duration>,
    /// How long it ran, if it has services that need it to run.
    pub(crate) served_for: Option<Duration>,
}

impl Ended {
    /// `None` when exit code and signal say it all.
    pub(crate) fn in_words(&self) -> Option<String> {
        let parts = [self.memory(), self.what_follows(), self.background()];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    fn memory(&self) -> Option<String> {
        let mib = self.memory_bytes >> 20;
        let text = format!(
            "it needed more than its {mib} MB of memory and the kernel killed it; more is given by \
             `memory` in [[vm]] or `fly scale memory`"
        );
        self.exit.oom_killed.then_some(text)
    }

    fn what_follows(&self) -> Option<String> {
        match self.back_off {
            // The first restart is no loop.
            Some(_) if self.restarts < 2 => None,
            Some(wait) => Some(format!(
                "it keeps ending: restart {} within 5 minutes follows in {} s",
                self.restarts,
                wait.as_secs_f32().round()
            )),
            None if self.has_given_up() => Some(format!(
                "it was restarted {} times within 5 minutes and stays stopped until somebody needs it",
                self.restarts
            )),
            None => None,
        }
    }

    fn background(&self) -> Option<String> {
        let short = self.served_for.is_some_and(|length| length < SHORT);
        (short && self.exit.is_clean() && self.back_off.is_none()).then(|| {
            "its program ended at once and says that all is well: a server must stay in the foreground, because a \
             Machine ends with its program"
                .to_owned()
        })
    }

    fn has_given_up(&self) -> bool {
        match self.policy {
            RestartPolicy::OnFailure { retries_max } => {
                !self.exit.is_clean() && 0 < retries_max && retries_max as usize <= self.restarts
            }
            RestartPolicy::No | RestartPolicy::Always => false,
        }
    }
}

/// Why a Machine was found down that had been up, or suspended (DESIGN 8).
pub(crate) const LOST: &str =
    "the host was restarted, or all of this Machine was killed, while no server watched";

#[cfg(test)]
mod tests {
    use super::*;

    const CRASH: Ended = Ended {
        exit: Exit { code: 1, signal: None, oom_killed: false },
        memory_bytes: 256 << 20,
        policy: RestartPolicy::OnFailure { retries_max: 3 },
        restarts: 1,
        back_off: Some(Duration::from_secs(1)),
        served_for: Some(Duration::from_secs(1)),
    };

    fn words(ended: Ended) -> String {
        ended.in_words().unwrap_or_default()
    }

    #[test]
    fn a_first_crash_speaks_for_itself() {
        assert_eq!(CRASH.in_words(), None);
        let no = Ended { policy: RestartPolicy::No, back_off: None, restarts: 0, ..CRASH };
        assert_eq!(no.in_words(), None);
    }

    #[test]
    fn lack_of_memory_names_the_limit_and_the_remedy() {
        let exit = Exit { code: 137, signal: Some(9), oom_killed: true };
        let text = words(Ended { exit, ..CRASH });
        assert!(text.contains("256 MB") && text.contains("fly scale memory"), "{text}");
    }

    #[test]
    fn a_crash_loop_says_when_it_goes_on_and_when_it_does_not() {
        let loops = Ended { restarts: 2, back_off: Some(Duration::from_secs(4)), ..CRASH };
        assert!(words(loops).contains("restart 2 within 5 minutes follows in 4 s"));
        let over = Ended { restarts: 3, back_off: None, ..CRASH };
        assert!(words(over).contains("restarted 3 times"));
        let clean = Exit { code: 0, signal: None, oom_killed: false };
        let over = Ended { exit: clean, served_for: None, ..over };
        assert_eq!(over.in_words(), None, "MA-25");
    }

    #[test]
    fn a_server_that_goes_to_the_background_is_told_to_stay() {
        let exit = Exit { code: 0, signal: None, oom_killed: false };
        let ended = Ended { exit, back_off: None, ..CRASH };
        assert!(words(ended).contains("foreground"));
        let later = Ended { served_for: Some(SHORT), ..ended };
        assert_eq!(later.in_words(), None, "AS-90: it was idle and left");
    }
}
