//! Workers that do not outlive a thaw.
//!
//! Many servers fork workers and kill those that say nothing for a while. Asleep nobody says anything, and at the thaw
//! such a master may be the first to look at the clock: the callers who woke the Machine then find nobody. That it
//! happened is seen from outside by comparing who was there when the Machine was frozen with who is there shortly after
//! it was thawed. Only forks that kept the name of their parent count: a shell's `sleep` that ends is none.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use perch_machine::{Machine, Worker};

use super::machine::{Command, Post};
use super::world::World;

/// Who ends later has other reasons.
const AFTER: Duration = Duration::from_millis(100);

/// Workers of the run that sleeps; none while they are being listed.
#[derive(Debug, Default)]
pub(crate) struct Workers(Arc<OnceLock<Vec<Worker>>>);

impl Workers {
    /// Lists them, beside: nothing in the Machine moves now.
    pub(crate) fn frozen(&mut self, world: &World, machine: Arc<Machine>) {
        let list = Arc::new(OnceLock::new());
        self.0 = list.clone();
        world.tracker.spawn_blocking(move || drop(list.set(machine.workers())));
    }

    /// Looks for them after a while, once.
    pub(crate) fn thawed(&mut self, world: &World, run: u64, mailbox: &Post) {
        let (list, mailbox) = (std::mem::take(&mut self.0), mailbox.clone());
        if list.get().is_none_or(Vec::is_empty) {
            return;
        }
        world.tracker.spawn(async move {
            tokio::time::sleep(AFTER).await;
            let told = tokio::task::spawn_blocking(move || list.get().and_then(|it| ended(it)));
            if let Ok(Some(told)) = told.await {
                // The Machine may be gone by now.
                mailbox.send(Command::WorkersEnded { run, told }).await.ok();
            }
        });
    }
}

fn ended(workers: &[Worker]) -> Option<String> {
    in_words(workers.iter().map(|worker| (worker.name.as_str(), worker.has_ended())))
}

fn in_words<'a>(workers: impl Iterator<Item = (&'a str, bool)>) -> Option<String> {
    let mut names: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (name, has_ended) in workers {
        let (ended, all) = names.entry(name).or_default();
        *ended += usize::from(has_ended);
        *all += 1;
    }
    // One of several may have had its own reason, such as a caller who left during the sleep.
    let lost = names.iter().filter(|(_, (ended, all))| ended == all);
    let lost: Vec<_> =
        lost.map(|(name, (_, all))| format!("{name} lost {all} of {all} workers")).collect();
    (!lost.is_empty()).then(|| {
        format!(
            "{} within {} ms of the thaw: perhaps their master kills workers who say nothing for a while, and counts the \
             time asleep; switch that limit off (gunicorn: `--timeout 0`) or sleep with `auto_stop_machines = \"stop\"`",
            lost.join(", "),
            AFTER.as_millis()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lost_how_many_is_said_with_the_remedy() {
        let workers = [("gunicorn", true), ("gunicorn", true), ("nginx", false)];
        let told = in_words(workers.into_iter()).expect("some have ended");
        assert!(told.starts_with("gunicorn lost 2 of 2 workers within 100 ms"), "{told}");
        assert!(told.contains("--timeout 0"), "{told}");
        assert_eq!(in_words([("postgres", true), ("postgres", false)].into_iter()), None);
    }
}
