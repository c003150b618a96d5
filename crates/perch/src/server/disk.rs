//! Keeps Machines from filling the host's disk.
//!
//! No kernel limits a directory without project quotas, which the disks of most hosts do not have switched on, and a
//! file system of its own for each run would make each start slower. So the disk is watched: one look a second at what
//! is free, of bytes and of inodes, and only when that falls by much, or below twice the reserve, at the Machines. What
//! the server itself frees meanwhile, such as the root of a run at the start of the next one, does not hide what they
//! take.
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
use perch_machine::{DiskUse, INODE_BYTES};

use super::machine::{self, Command, Haste, Status};
use super::records::MachineRecord;
use super::world::World;

/// Between two looks at what is free, and when little is.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const LOOK_INTERVAL_LOW: Duration = Duration::from_millis(200);
/// What others may take before the Machines are looked at.
const STEP_BYTES: u64 = 64 * MIB;
/// Looking at Machines takes at most this part of the time, unless the pause would be longer than the reserve lasts.
const LOOKING_PART: u32 = 20;
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(2);
/// The images' own reserve is the same.
const RESERVE_BYTES: u64 = 512 * MIB;
const RESERVE_PART: u64 = 10;
/// Some file systems have no fixed number and say 0.
const INODES_RESERVE_PART: u64 = 20;
/// What grows less between two looks is not what fills the disk.
const GROWTH_BYTES_MIN: u64 = MIB;
const MIB: u64 = 1 << 20;

/// What files take of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Space {
    bytes: u64,
    inodes: u64,
}

impl Space {
    fn plus(self, other: Self) -> Self {
        let bytes = self.bytes.saturating_add(other.bytes);
        Self { bytes, inodes: self.inodes.saturating_add(other.inodes) }
    }

    fn minus(self, other: Self) -> Self {
        let bytes = self.bytes.saturating_sub(other.bytes);
        Self { bytes, inodes: self.inodes.saturating_sub(other.inodes) }
    }

    /// The larger of each.
    fn or_more(self, other: Self) -> Self {
        Self { bytes: self.bytes.max(other.bytes), inodes: self.inodes.max(other.inodes) }
    }

    /// The smaller of each.
    fn or_less(self, other: Self) -> Self {
        Self { bytes: self.bytes.min(other.bytes), inodes: self.inodes.min(other.inodes) }
    }

    /// Whether there is less of either.
    fn lacks(self, other: Self) -> bool {
        self.bytes < other.bytes || self.inodes < other.inodes
    }

    /// What files of this size take at most.
    fn of_files(bytes: u64) -> Self {
        Self { bytes, inodes: bytes / INODE_BYTES }
    }
}

/// The disk as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Disk {
    free: Space,
    reserve: Space,
    /// What the server has ever given back.
    freed: Space,
}

impl Disk {
    fn of(dir: &Path) -> std::io::Result<Self> {
        // Before the rest: what is freed between the two is then expected once more, which costs a look at most.
        let freed = perch_machine::freed();
        let found = rustix::fs::statvfs(dir)?;
        let size = found.f_blocks * found.f_frsize;
        Ok(Self {
            free: Space { bytes: found.f_bavail * found.f_frsize, inodes: found.f_favail },
            reserve: Space::of_files(RESERVE_BYTES).or_less(Space {
                bytes: size / RESERVE_PART,
                inodes: found.f_files / INODES_RESERVE_PART,
            }),
            freed: Space { bytes: freed.bytes, inodes: freed.inodes },
        })
    }

    fn is_low(self) -> bool {
        self.free.lacks(self.reserve.plus(self.reserve))
    }

    /// What there is too little of, if anything is below its reserve.
    fn lack(self) -> Option<String> {
        let Self { free, reserve, .. } = self;
        if free.bytes < reserve.bytes {
            let (free, reserve) = (free.bytes / MIB, reserve.bytes / MIB);
            return Some(format!("{free} MB left, less than its reserve of {reserve} MB"));
        }
        let (free, reserve) = (free.inodes, reserve.inodes);
        (free < reserve).then(|| format!("{free} inodes left, less than its reserve of {reserve}"))
    }
}

/// A Machine as it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    run: u64,
    limit: u64,
    /// Whether nobody has asked it to end.
    is_up: bool,
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
    free: Space,
    freed: Space,
    /// Whether somebody was to be stopped: he may be there again at once, or still.
    is_alarmed: bool,
    next_look: Option<Instant>,
}

impl Watch {
    /// Takes in what was given back, by the server or by others.
    fn expect(&mut self, disk: Disk) {
        self.free = self.free.plus(disk.freed.minus(self.freed)).or_more(disk.free);
        self.freed = disk.freed;
    }

    /// Whether the Machines have to be looked at. The first look is what later ones are compared with, also when the
    /// disk is filled before any other.
    fn is_due(&self, disk: Disk, step: u64, now: Instant) -> bool {
        let step = if disk.is_low() { GROWTH_BYTES_MIN } else { step };
        let has_fallen = disk.free.plus(Space::of_files(step)).lacks(self.free);
        self.next_look.is_none_or(|at| at <= now && (self.is_alarmed || has_fallen))
    }

    /// A look at the Machines begins: what is taken meanwhile is what they may take before the next one.
    fn begin(&mut self, disk: Disk) {
        (self.free, self.freed) = (disk.free, disk.freed);
    }

    /// Takes in what was seen, which took so long, with the disk as it is afterwards.
    fn judge(
        &mut self,
        disk: Disk,
        now: BTreeMap<String, Seen>,
        at: Instant,
        took: Duration,
    ) -> Vec<Verdict> {
        let over = now.iter().filter(|(_, it)| it.is_up && it.limit < it.disk.used_bytes);
        let mut verdicts: Vec<_> = over.map(|(id, seen)| too_large(id, seen)).collect();
        if let Some(lack) = disk.lack() {
            verdicts.extend(self.greediest(&lack, &now));
        }
        self.machines = now;
        self.is_alarmed = !verdicts.is_empty();
        self.next_look = Some(at + (took * LOOKING_PART).min(LOOK_PAUSE_MAX));
        verdicts
    }

    fn greediest(&self, lack: &str, now: &BTreeMap<String, Seen>) -> Option<Verdict> {
        // Without a former look all that a Machine ever wrote would be its growth.
        self.next_look?;
        let grown = |id: &String, seen: &Seen| {
            let before = self.machines.get(id).filter(|before| before.run == seen.run);
            let before = before.map_or(DiskUse::default(), |before| before.disk);
            // What is over its limit is not counted to its end, so it would seem to grow no more.
            let counted = if seen.limit < seen.disk.used_bytes { 0 } else { before.used_bytes };
            let used = seen.disk.used_bytes.saturating_sub(counted);
            used.max(seen.disk.written_bytes.saturating_sub(before.written_bytes))
        };
        let (growth, id, seen) =
            now.iter().map(|(id, seen)| (grown(id, seen), id, seen)).max_by_key(|it| it.0)?;
        let used = Some(seen.disk.used_bytes).filter(|used| *used != DiskUse::UNCOUNTABLE);
        let reason = format!(
            "the host's disk has {lack}, and this Machine grew most: it has written {} MB",
            seen.disk.written_bytes.max(used.unwrap_or(0)) / MIB,
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
    let taken = match seen.disk.used_bytes {
        DiskUse::UNCOUNTABLE => {
            format!("more than can be counted, below {} directories", DiskUse::LEVELS_MAX)
        }
        used => format!("{} MB of the disk or more", used / MIB),
    };
    let reason = format!(
        "its files take {taken}, and it may have {} MB (`rootfs` of its configuration, `root_disk_mb` of the \
         server's)",
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
        let Some(disk) = disk_now(&world) else { continue };
        pause = if disk.is_low() { LOOK_INTERVAL_LOW } else { LOOK_INTERVAL };
        watch.expect(disk);
        if watch.is_due(disk, step, Instant::now()) {
            look(&world, &mut watch, disk).await;
        }
    }
}

fn disk_now(world: &World) -> Option<Disk> {
    let found = Disk::of(&world.paths.machines());
    found.inspect_err(|error| tracing::warn!(%error, "could not look at the disk")).ok()
}

async fn look(world: &Arc<World>, watch: &mut Watch, before: Disk) {
    watch.begin(before);
    let (owner, started) = (world.clone(), Instant::now());
    let Ok(seen) = tokio::task::spawn_blocking(move || machines(&owner)).await else { return };
    // A look may take long: nobody is killed for what was lacking before it.
    let disk = disk_now(world).unwrap_or(before);
    for verdict in watch.judge(disk, seen, Instant::now(), started.elapsed()) {
        let Verdict { machine, run, haste, reason } = verdict;
        tracing::warn!(machine, run, reason, "a Machine takes too much of the disk");
        if let Some(handle) = world.handle(&machine) {
            // Beside: a Machine whose task is busy must not keep the next one from being stopped.
            let command = Command::Limit { run, haste, reason };
            world.tracker.spawn(async move { handle.send(command).await });
        }
    }
}

/// Those that can write, until the last moment. One that ends meanwhile is not there.
fn machines(world: &World) -> BTreeMap<String, Seen> {
    let limit = |record: &MachineRecord| {
        let own = record.config.get("rootfs").and_then(|it| it.get("size_gb")?.as_u64());
        own.filter(|size| 0 < *size).map_or(world.config.root_disk_mb, |size| size << 10) * MIB
    };
    let can_write =
        |status: &Status| status.running.is_some() && status.state != MachineState::Suspended;
    let limits: Vec<(String, u64)> = {
        let catalog = world.keeper.read();
        let limited = catalog.machines.values().filter_map(|record| {
            let status = world.handle(&record.id)?.status();
            can_write(&status).then(|| (record.id.clone(), limit(record)))
        });
        limited.collect()
    };
    let seen = limits.into_iter().filter_map(|(id, limit)| {
        let status = world.handle(&id)?.status();
        let disk = can_write(&status).then(|| DiskUse::of(&world.paths.machine(&id), limit).ok());
        let is_up = machine::is_up(status.state);
        Some((id, Seen { run: status.run, limit, is_up, disk: disk.flatten()? }))
    });
    seen.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: Disk = Disk {
        free: Space { bytes: 1000 * MIB, inodes: 100_000 },
        reserve: Space { bytes: 100 * MIB, inodes: 5_000 },
        freed: Space { bytes: 0, inodes: 0 },
    };
    const LITTLE: Disk = Disk { free: Space { bytes: 99 * MIB, inodes: 100_000 }, ..PLENTY };

    fn bytes(mib: u64) -> Space {
        Space { bytes: mib * MIB, inodes: 0 }
    }

    fn seen(run: u64, used: u64, written: u64) -> Seen {
        let disk = DiskUse { used_bytes: used * MIB, written_bytes: written * MIB };
        Seen { run, limit: 100 * MIB, is_up: true, disk }
    }

    fn all(machines: &[(&str, Seen)]) -> BTreeMap<String, Seen> {
        machines.iter().map(|(id, seen)| ((*id).to_owned(), seen.clone())).collect()
    }

    fn judge(watch: &mut Watch, disk: Disk, machines: &[(&str, Seen)]) -> Vec<String> {
        watch.begin(disk);
        judge_after(watch, disk, machines)
    }

    fn judge_after(watch: &mut Watch, disk: Disk, machines: &[(&str, Seen)]) -> Vec<String> {
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
    fn who_is_stopping_is_not_asked_again_but_killed_below_the_reserve() {
        let stopping = |used| Seen { is_up: false, ..seen(1, used, 0) };
        let mut watch = Watch::default();
        assert!(judge(&mut watch, PLENTY, &[("a", stopping(101))]).is_empty());
        let found = judge(&mut watch, LITTLE, &[("a", stopping(120))]);
        assert_eq!(found, ["a AtOnce"]);
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
        let less = Disk { free: PLENTY.free.minus(bytes(65)), ..PLENTY };
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
        let swapped = Disk { freed: bytes(90), ..PLENTY };
        watch.expect(swapped);
        assert!(watch.is_due(swapped, step, now), "as much is free, but of another run");
        watch.expect(swapped);
        assert!(watch.is_due(swapped, step, now), "as long as nobody has looked");
        judge(&mut watch, swapped, &[("filler", seen(2, 90, 90))]);
        watch.expect(swapped);
        assert!(!watch.is_due(swapped, step, now), "it was looked at");
        let emptied = Disk { free: PLENTY.free.plus(bytes(90)), freed: bytes(180), ..PLENTY };
        watch.expect(emptied);
        assert!(!watch.is_due(emptied, step, now), "nobody has taken anything");
        let filled = Disk { freed: bytes(180), ..PLENTY };
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

    #[test]
    fn who_takes_the_inodes_is_found_like_who_takes_the_bytes() {
        let (now, step) = (Instant::now(), 64 * MIB);
        let with = |inodes| Disk { free: Space { inodes, ..PLENTY.free }, ..PLENTY };
        let mut watch = Watch { free: PLENTY.free, next_look: Some(now), ..Watch::default() };
        assert!(!watch.is_due(with(90_000), step, now));
        assert!(watch.is_due(with(80_000), step, now));
        let swapped = Disk { freed: Space { bytes: 0, inodes: 20_000 }, ..PLENTY };
        watch.expect(swapped);
        assert!(watch.is_due(swapped, step, now), "as many are free, but of another run");
        assert!(with(9_999).is_low() && !with(10_000).is_low());
        let few = with(4_999);
        let mut watch = Watch::default();
        judge(&mut watch, PLENTY, &[("files", seen(1, 10, 0)), ("old", seen(1, 0, 90))]);
        let found = judge(&mut watch, few, &[("files", seen(1, 50, 0)), ("old", seen(1, 0, 91))]);
        assert_eq!(found, ["files AtOnce"]);
        judge(&mut watch, few, &[("files", seen(2, 101, 0))]);
        let found = judge(&mut watch, few, &[("files", seen(2, 101, 0))]);
        assert_eq!(found, ["files InGoodOrder", "files AtOnce"], "it does not go when asked");
        let unknown = Space { inodes: 0, ..PLENTY.reserve };
        let unknown = Disk { reserve: unknown, ..with(0) };
        assert!(!unknown.is_low() && unknown.lack().is_none());
    }

    #[test]
    fn what_is_taken_or_freed_during_a_look_counts() {
        let mut watch = Watch::default();
        judge(&mut watch, PLENTY, &[("filler", seen(1, 10, 10))]);
        watch.begin(LITTLE);
        let found = judge_after(&mut watch, PLENTY, &[("filler", seen(1, 60, 60))]);
        assert!(found.is_empty(), "there is room again: {found:?}");
        watch.begin(PLENTY);
        let found = judge_after(&mut watch, LITTLE, &[("filler", seen(1, 60, 60))]);
        assert!(found.is_empty(), "it had not grown yet: {found:?}");
        let now = Instant::now() + LOOK_INTERVAL;
        watch.expect(LITTLE);
        assert!(watch.is_due(LITTLE, 64 * MIB, now), "who grew after he was looked at");
    }

    #[test]
    fn a_long_look_blinds_nobody_for_long() {
        let (mut watch, at) = (Watch::default(), Instant::now());
        watch.judge(PLENTY, BTreeMap::new(), at, Duration::from_secs(60));
        assert_eq!(watch.next_look, Some(at + LOOK_PAUSE_MAX));
    }
}
