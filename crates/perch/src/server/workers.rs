//! Workers that do not outlive a thaw.
//!
//! Many servers fork workers and kill those that say nothing for a while. Asleep nobody says anything, and at the thaw
//! such a master may be the first to look at the clock: the callers who woke the Machine then find nobody. That it
//! happened is seen from outside by comparing who was there when the Machine was frozen with who is there shortly after
//! it was thawed. Only forks that kept the name of their parent count: a shell's `sleep` that ends is none. Where the kernel
//! tells how they ended, each that did not end well is told; else only the end of all, since one of several may have had a
//! reason of its own, such as a caller who left during the sleep.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use perch_machine::{Machine, Worker, WorkerEnd};

use super::machine::Command;
use super::seat::Post;
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
    in_words(workers.iter().map(|worker| (worker.name.as_str(), worker.end())))
}

/// What became of the workers of one name.
#[derive(Debug, Default)]
struct Fate<'a> {
    name: &'a str,
    all: usize,
    /// Ended, how is not known.
    unknown: usize,
    killed: Vec<String>,
}

impl<'a> Fate<'a> {
    fn add(&mut self, name: &'a str, end: Option<WorkerEnd>) {
        self.name = name;
        self.all += 1;
        match end {
            None | Some(WorkerEnd::Code(0)) => {}
            Some(WorkerEnd::Unknown) => self.unknown += 1,
            Some(WorkerEnd::Code(code)) => self.killed.push(format!("exit code {code}")),
            Some(WorkerEnd::Signal(signal)) => self.killed.push(format!("signal {signal}")),
        }
    }

    fn in_words(self) -> Option<String> {
        let Self { name, all, unknown, mut killed } = self;
        let lost = unknown + killed.len();
        if killed.is_empty() && lost < all {
            return None;
        }
        killed.sort();
        killed.dedup();
        let how =
            if killed.is_empty() { String::new() } else { format!(" ({})", killed.join(", ")) };
        Some(format!("{name} lost {lost} of {all} workers{how}"))
    }
}

fn in_words<'a>(workers: impl Iterator<Item = (&'a str, Option<WorkerEnd>)>) -> Option<String> {
    let mut fates: BTreeMap<&str, Fate<'a>> = BTreeMap::new();
    for (name, end) in workers {
        fates.entry(name).or_default().add(name, end);
    }
    let lost: Vec<_> = fates.into_values().filter_map(Fate::in_words).collect();
    (!lost.is_empty()).then(|| {
        format!(
            "{} within {} ms of the thaw: perhaps their master kills workers who say nothing for a while, and counts the \
             time asleep; switch that limit off (gunicorn: `--timeout 0`) or sleep with `auto_stop_machines = \"stop\"`",
            lost.join("; "),
            AFTER.as_millis()
        )
    })
}

#[cfg(test)]
mod tests {
    use WorkerEnd::{Code, Signal, Unknown};

    use super::*;

    fn told(name: &str, ends: &[Option<WorkerEnd>]) -> Option<String> {
        let told = in_words(ends.iter().map(|end| (name, *end)))?;
        let (lost, advice) = told.split_once(" within 100 ms of the thaw: ").expect("advice");
        assert!(advice.contains("--timeout 0"), "{told}");
        Some(lost.to_owned())
    }

    #[test]
    fn who_was_killed_is_said_with_how_and_the_remedy_also_of_one_of_several() {
        let check = |ends: &[Option<WorkerEnd>], said: &str| {
            assert_eq!(told("gunicorn", ends).as_deref(), Some(said));
        };
        check(&[Some(Signal(9)), None], "gunicorn lost 1 of 2 workers (signal 9)");
        check(
            &[Some(Code(1)), Some(Signal(9)), None, Some(Code(1))],
            "gunicorn lost 3 of 4 workers (exit code 1, signal 9)",
        );
        check(&[Some(Code(1)), Some(Unknown)], "gunicorn lost 2 of 2 workers (exit code 1)");
        check(&[Some(Unknown), Some(Unknown)], "gunicorn lost 2 of 2 workers");
    }

    #[test]
    fn who_ended_well_or_has_one_sibling_left_and_no_known_end_is_no_news() {
        assert_eq!(told("postgres", &[Some(Code(0)), None]), None);
        assert_eq!(told("postgres", &[Some(Unknown), None]), None);
        assert_eq!(told("sh", &[Some(Code(0))]), None, "a loop of a shell");
        assert_eq!(told("nginx", &[None, None]), None);
    }

    #[test]
    fn each_master_is_judged_by_its_own_workers() {
        let workers = [("gunicorn", Some(Unknown)), ("nginx", Some(Signal(6))), ("nginx", None)];
        let told = in_words(workers.into_iter()).expect("some have ended");
        let said = "gunicorn lost 1 of 1 workers; nginx lost 1 of 2 workers (signal 6) within";
        assert!(told.starts_with(said), "{told}");
    }
}
