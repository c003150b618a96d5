//! Keeps Machines from filling the host's disk.
//!
//! No kernel limits a directory without project quotas, which the disks of most hosts do not have switched on, and a
//! file system of its own for each run would make each start slower. So the disk is watched: one look a second at what
//! is free, and only when that falls by much, or below twice the reserve, at the Machines. What the server itself frees
//! meanwhile, such as the root of a run at the start of the next one, does not hide what they take.
//!
//! - One whose own files are larger than it may have is stopped, as by a user.
//! - Below the reserve the one that grows most is killed, whatever it may have.
//!
//! Both are events of the Machine that say why. Its root is fresh at its next start. Between two looks a Machine can
//! write as much as the disk takes in a second; the reserve is for that.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use perch_api::wire::MachineState;
use perch_machine::DiskUse;

use super::machine::{Command, Haste};
use super::world::World;

/// Between two looks at what is free, and when little is.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const LOOK_INTERVAL_LOW: Duration = Duration::from_millis(200);
/// What others may take before the Machines are looked at.
const STEP_BYTES: u64 = 64 * MIB;
/// Looking at Machines takes at most this part of the time.
const LOOKING_PART: u32 = 20;
/// The images' own reserve is the same.
const RESERVE_BYTES: u64 = 512 * MIB;
const RESERVE_PART: u64 = 10;
/// What grows less between two looks is not what fills the disk.
const GROWTH_BYTES_MIN: u64 = MIB;
const MIB: u64 = 1 << 20;

/// The disk as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Disk {
    free: u64,
    reserve: u64,
    /// What the server has ever given back.
    freed: u64,
}

impl Disk {
    fn of(dir: &Path) -> std::io::Result<Self> {
        // Before the rest: what is freed between the two is then expected once more, which costs a look at most.
        let freed = perch_machine::freed_bytes();
        let found = rustix::fs::statvfs(dir)?;
        let reserve = RESERVE_BYTES.min(found.f_blocks * found.f_frsize / RESERVE_PART);
        Ok(Self { free: found.f_bavail * found.f_frsize, reserve, freed })
    }

    fn is_low(self) -> bool {
        self.free < 2 * self.reserve
    }
}

/// A Machine as it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    run: u64,
    limit: u64,
    disk: DiskUse,
}

/// What is to be done about one Machine.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    machine: String,
    run: u64,
    haste: Haste,
    reason: String,
}

/// What was seen at the last look.
#[derive(Debug, Default)]
struct Watch {
    machines: BTreeMap<String, Seen>,
    /// What would be free if nobody had taken anything since.
    free: u64,
    freed: u64,
    /// Whether somebody was to be stopped: he may be there again at once, or still.
    is_alarmed: bool,
    next_look: Option<Instant>,
}

impl Watch {
    /// Takes in what was given back, by the server or by others.
    fn expect(&mut self, disk: Disk) {
        let freed = disk.freed.saturating_sub(self.freed);
        self.free = self.free.saturating_add(freed).max(disk.free);
        self.freed = disk.freed;
    }

    /// Whether the Machines have to be looked at. The first look is what later ones are compared with, also when the
    /// disk is filled before any other.
    fn is_due(&self, disk: Disk, step: u64, now: Instant) -> bool {
        let step = if disk.is_low() { GROWTH_BYTES_MIN } else { step };
        let has_fallen = disk.free.saturating_add(step) < self.free;
        self.next_look.is_none_or(|at| at <= now && (self.is_alarmed || has_fallen))
    }

    /// Takes in what was seen, which took so long.
    fn judge(
        &mut self,
        disk: Disk,
        now: BTreeMap<String, Seen>,
        at: Instant,
        took: Duration,
    ) -> Vec<Verdict> {
        let over = now.iter().filter(|(_, seen)| seen.limit < seen.disk.used_bytes);
        let mut verdicts: Vec<_> = over.map(|(id, seen)| too_large(id, seen)).collect();
        if disk.free < disk.reserve {
            verdicts.extend(self.greediest(disk, &now));
        }
        (self.machines, self.free, self.freed) = (now, disk.free, disk.freed);
        self.is_alarmed = !verdicts.is_empty();
        self.next_look = Some(at + took * LOOKING_PART);
        verdicts
    }

    fn greediest(&self, disk: Disk, now: &BTreeMap<String, Seen>) -> Option<Verdict> {
        // Without a former look all that a Machine ever wrote would be its growth.
        self.next_look?;
        let grown = |id: &String, seen: &Seen| {
            let before = self.machines.get(id).filter(|before| before.run == seen.run);
            let before = before.map_or(DiskUse::default(), |before| before.disk);
            let used = seen.disk.used_bytes.saturating_sub(before.used_bytes);
            used.max(seen.disk.written_bytes.saturating_sub(before.written_bytes))
        };
        let (growth, id, seen) =
            now.iter().map(|(id, seen)| (grown(id, seen), id, seen)).max_by_key(|it| it.0)?;
        let reason = format!(
            "the host's disk has {} MB left, less than its reserve of {} MB, and this Machine grew most: it has \
             written {} MB",
            disk.free / MIB,
            disk.reserve / MIB,
            seen.disk.written_bytes.max(seen.disk.used_bytes) / MIB,
        );
        (GROWTH_BYTES_MIN <= growth).then(|| Verdict {
            machine: id.clone(),
            run: seen.run,
            haste: Haste::AtOnce,
            reason,
        })
    }
}

fn too_large(id: &str, seen: &Seen) -> Verdict {
    let reason = format!(
        "its files take {} MB of the disk, and it may have {} MB (`rootfs` of its configuration, `root_disk_mb` of the \
         server's)",
        seen.disk.used_bytes / MIB,
        seen.limit / MIB
    );
    Verdict { machine: id.to_owned(), run: seen.run, haste: Haste::InGoodOrder, reason }
}

/// Watches until the server ends.
pub(crate) async fn watch(world: Arc<World>) {
    let mut watch = Watch::default();
    let step = STEP_BYTES.min(world.config.root_disk_mb * MIB / 4);
    let mut pause = LOOK_INTERVAL;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = world.shutdown.cancelled() => return,
        }
        let disk = match Disk::of(&world.paths.machines()) {
            Ok(disk) => disk,
            Err(error) => {
                tracing::warn!(%error, "could not look at the disk");
                continue;
            }
        };
        pause = if disk.is_low() { LOOK_INTERVAL_LOW } else { LOOK_INTERVAL };
        watch.expect(disk);
        if watch.is_due(disk, step, Instant::now()) {
            look(&world, &mut watch, disk).await;
        }
    }
}

async fn look(world: &Arc<World>, watch: &mut Watch, disk: Disk) {
    let (owner, started) = (world.clone(), Instant::now());
    let Ok(seen) = tokio::task::spawn_blocking(move || machines(&owner)).await else { return };
    for verdict in watch.judge(disk, seen, Instant::now(), started.elapsed()) {
        let Verdict { machine, run, haste, reason } = verdict;
        tracing::warn!(machine, run, reason, "a Machine takes too much of the disk");
        if let Some(handle) = world.handle(&machine) {
            handle.send(Command::Limit { run, haste, reason }).await;
        }
    }
}

/// Those that run. One that ends meanwhile is not there.
fn machines(world: &World) -> BTreeMap<String, Seen> {
    let limit = |config: &perch_api::wire::MachineConfig| {
        let own = config.get("rootfs").and_then(|it| it.get("size_gb")?.as_u64());
        own.filter(|size| 0 < *size).map_or(world.config.root_disk_mb, |size| size << 10) * MIB
    };
    let limits: Vec<(String, u64)> = {
        let catalog = world.keeper.read();
        catalog.machines.values().map(|it| (it.id.clone(), limit(&it.config))).collect()
    };
    let seen = limits.into_iter().filter_map(|(id, limit)| {
        let status = world.handle(&id)?.status();
        let runs = status.state == MachineState::Started;
        let disk = runs.then(|| DiskUse::of(&world.paths.machine(&id)).ok()).flatten()?;
        Some((id, Seen { run: status.run, limit, disk }))
    });
    seen.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: Disk = Disk { free: 1000 * MIB, reserve: 100 * MIB, freed: 0 };
    const LITTLE: Disk = Disk { free: 99 * MIB, ..PLENTY };

    fn seen(run: u64, used: u64, written: u64) -> Seen {
        let disk = DiskUse { used_bytes: used * MIB, written_bytes: written * MIB };
        Seen { run, limit: 100 * MIB, disk }
    }

    fn all(machines: &[(&str, Seen)]) -> BTreeMap<String, Seen> {
        machines.iter().map(|(id, seen)| ((*id).to_owned(), seen.clone())).collect()
    }

    fn judge(watch: &mut Watch, disk: Disk, machines: &[(&str, Seen)]) -> Vec<String> {
        let verdicts = watch.judge(disk, all(machines), Instant::now(), Duration::ZERO);
        verdicts.into_iter().map(|it| format!("{} {:?}", it.machine, it.haste)).collect()
    }

    #[test]
    fn who_is_over_its_own_limit_is_stopped_and_nobody_else() {
        let found = judge(
            &mut Watch::default(),
            PLENTY,
            &[("a", seen(1, 100, 500)), ("b", seen(1, 101, 101))],
        );
        assert_eq!(found, ["b InGoodOrder"]);
    }

    #[test]
    fn below_the_reserve_the_one_that_grew_most_is_killed_even_if_its_files_have_no_name() {
        let mut watch = Watch::default();
        judge(&mut watch, PLENTY, &[("large", seen(1, 90, 90)), ("hidden", seen(1, 0, 10))]);
        let found =
            judge(&mut watch, LITTLE, &[("large", seen(1, 91, 91)), ("hidden", seen(1, 0, 60))]);
        assert_eq!(found, ["hidden AtOnce"]);
        let found =
            judge(&mut watch, LITTLE, &[("large", seen(1, 91, 91)), ("hidden", seen(1, 0, 60))]);
        assert!(found.is_empty(), "somebody else fills the disk: {found:?}");
    }

    #[test]
    fn at_the_first_look_what_a_machine_ever_wrote_is_not_its_growth() {
        let mut watch = Watch::default();
        let old = ("old", seen(1, 10, 900));
        let found = judge(&mut watch, LITTLE, &[old.clone(), ("filler", seen(1, 40, 40))]);
        assert!(found.is_empty(), "{found:?}");
        let found = judge(&mut watch, LITTLE, &[old, ("filler", seen(1, 44, 44))]);
        assert_eq!(found, ["filler AtOnce"]);
    }

    #[test]
    fn machines_are_looked_at_only_when_much_is_gone_or_little_left() {
        let now = Instant::now();
        assert!(Watch::default().is_due(PLENTY, 64 * MIB, now), "nothing was seen yet");
        let watch = Watch { free: PLENTY.free, next_look: Some(now), ..Watch::default() };
        assert!(!watch.is_due(PLENTY, 64 * MIB, now));
        let less = Disk { free: PLENTY.free - 65 * MIB, ..PLENTY };
        assert!(watch.is_due(less, 64 * MIB, now));
        assert!(watch.is_due(LITTLE, 64 * MIB, now));
        let full = Watch { free: LITTLE.free, next_look: Some(now), ..Watch::default() };
        assert!(!full.is_due(LITTLE, 64 * MIB, now), "nothing moves");
        let busy = Watch { next_look: Some(now + Duration::from_secs(1)), ..watch };
        assert!(!busy.is_due(LITTLE, 64 * MIB, now), "looking must not take all the time");
    }

    #[test]
    fn what_the_server_frees_at_a_start_does_not_hide_what_the_new_run_takes() {
        let (mut watch, step) = (Watch::default(), 64 * MIB);
        judge(&mut watch, PLENTY, &[("filler", seen(1, 90, 90))]);
        let now = Instant::now() + LOOK_INTERVAL;
        watch.expect(PLENTY);
        assert!(!watch.is_due(PLENTY, step, now), "nothing moves");
        let swapped = Disk { freed: 90 * MIB, ..PLENTY };
        watch.expect(swapped);
        assert!(watch.is_due(swapped, step, now), "as much is free, but of another run");
        watch.expect(swapped);
        assert!(watch.is_due(swapped, step, now), "as long as nobody has looked");
        judge(&mut watch, swapped, &[("filler", seen(2, 90, 90))]);
        watch.expect(swapped);
        assert!(!watch.is_due(swapped, step, now), "it was looked at");
        let emptied = Disk { free: PLENTY.free + 90 * MIB, freed: 180 * MIB, ..PLENTY };
        watch.expect(emptied);
        assert!(!watch.is_due(emptied, step, now), "nobody has taken anything");
        let filled = Disk { freed: 180 * MIB, ..PLENTY };
        watch.expect(filled);
        assert!(watch.is_due(filled, step, now));
    }

    #[test]
    fn after_somebody_was_to_be_stopped_all_are_looked_at_once_more() {
        let (mut watch, step) = (Watch::default(), 64 * MIB);
        judge(&mut watch, PLENTY, &[("filler", seen(1, 101, 101))]);
        let now = Instant::now() + LOOK_INTERVAL;
        assert!(watch.is_due(PLENTY, step, now), "it may be there again, or still");
        judge(&mut watch, PLENTY, &[("filler", seen(2, 0, 0))]);
        assert!(!watch.is_due(PLENTY, step, now));
    }
}
