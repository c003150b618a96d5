//! A Machine's memory: how much of it is where, and moving it to swap while the Machine sleeps.
//!
//! ```text
//!  frozen ──yield_memory──► the kernel's first choice ──page_out──► in swap, chunk by chunk, while it is frozen
//!     └───────thaw────────► keep_memory (as it was) ──prefetch──► back, behind the first answers
//! ```
//!
//! Only anonymous memory moves: file pages are the kernel's to drop at any time, and evicting them costs 10 ms at the
//! next wake. Shared memory, and what lies in `/dev/shm`, goes with what the kernel takes itself when room is asked for in
//! the Machine's memory cgroup; without one it stays, as do pages that a fork shares. What was changed about a sleeper lies in its directory when
//! it cannot be told from the Machine itself, so that a later server puts it back too.

mod copies;

use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use perch_core::fault::{self, Point};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use crate::cgroup::charge::Charge;
use crate::files;
use crate::launch::Machine;
use crate::sys::{self, Advice};

/// Bytes that one call moves; between two of them it is looked whether the Machine is needed.
const CHUNK: u64 = 2 << 20;
/// What sleepers have as `oom_score_adj`: before everybody who runs, and no value that anything else sets.
const SLEEPER: i32 = 999;
/// What was changed about a sleeper, if it was anything unusual.
const ASLEEP_FILE: &str = "asleep.json";
/// Passes over the processes of a Machine that may be forking.
const PASSES_MAX: usize = 4;

/// Less shared memory is not worth the files that may go with it.
const SHARED_MIN: u64 = 1 << 20;
/// How often in a row the kernel may free less than it was asked for; it takes as many turns itself.
const REFUSALS_MAX: u32 = 16;

/// Where a Machine's memory is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// In RAM, what several processes share counted once in all.
    pub resident_bytes: u64,
    /// As much of that as no file of a disk has: it leaves RAM only for swap. Shared memory is part of it, and what lies
    /// in `/dev/shm`, where a memory cgroup counts it.
    pub anonymous_bytes: u64,
    /// In swap.
    pub swapped_bytes: u64,
}

/// What a page-out did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagedOut {
    /// Bytes that went to swap.
    pub bytes: u64,
    /// Where the memory is now.
    pub memory: Memory,
    /// Why it ended.
    pub end: End,
}

/// Why moving memory ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All was asked for that can go.
    Done,
    /// The caller, or a thaw, called it off.
    CalledOff,
    /// No swap is left.
    SwapFull,
}

/// What cannot be told from a sleeper itself.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Asleep {
    run: u64,
    /// `oom_score_adj` by process, where it was not zero.
    scores: Vec<(i32, i32)>,
    /// Its own limit of swap.
    swap_limit: Option<String>,
}

/// Has the kernel free so many bytes of a Machine's, as `RoomMaker::make` does.
type MakeRoom<'a> = dyn FnMut(u64) -> io::Result<()> + 'a;

/// Anonymous memory of one process.
struct Part {
    pidfd: OwnedFd,
    ranges: Vec<Range<u64>>,
}

impl Machine {
    /// Measures where its memory is, frozen or not. Reads `/proc`: 0.1 ms a process, 3 ms a GB; and what its memory
    /// cgroup counts, which knows better where there is one.
    pub fn memory(&self) -> io::Result<Memory> {
        let (mut sum, mut files) = (Memory::default(), 0);
        if self.is_over() {
            return Ok(sum);
        }
        for pid in self.cgroups().pids() {
            match fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
                Ok(text) => {
                    sum.add(&text);
                    files += kilobytes(&text, "Pss_File:");
                }
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.cgroups().charge().map_or(sum, |charge| sum.corrected(charge, files)))
    }

    /// As much of [`Machine::memory`] as its memory cgroup counts, in 0.05 ms: nothing of files. `None` without one.
    pub fn charged(&self) -> Option<Memory> {
        Some(Memory::default().corrected(self.cgroups().charge()?, 0))
    }

    /// Makes its processes the first that the kernel kills for want of memory, and lets all of it go to swap. For a
    /// frozen Machine; [`Machine::keep_memory`] puts it back. Idempotent.
    pub fn yield_memory(&self) -> io::Result<()> {
        self.cgroups().keep_memory_limit(self.spec().memory_bytes)?;
        let cgroups = self.cgroups();
        let pids = cgroups.pids();
        let scored = |pid: &i32| {
            let score = score(*pid).ok().flatten()?;
            (score != 0 && score != SLEEPER).then_some((*pid, score))
        };
        let former = self.asleep();
        let mut asleep = Asleep { run: self.run(), ..Asleep::default() };
        asleep.scores = pids.iter().filter_map(scored).collect();
        asleep.swap_limit = cgroups.swap_limit();
        if let Some(former) = former {
            let known: Vec<i32> = asleep.scores.iter().map(|(pid, _)| *pid).collect();
            asleep.scores.extend(former.scores.into_iter().filter(|(pid, _)| !known.contains(pid)));
            asleep.swap_limit = asleep.swap_limit.or(former.swap_limit);
        }
        // Written first: a server that dies here leaves a file that changes nothing.
        if !asleep.scores.is_empty() || asleep.swap_limit.is_some() {
            files::write(&self.spec().dir, ASLEEP_FILE, &asleep)?;
        }
        fault::pass(Point::ServerYieldSaved);
        pids.iter().try_for_each(|pid| set_score(*pid, SLEEPER))?;
        fault::pass(Point::ServerYieldRanked);
        let lifted = cgroups.lift_swap_limit();
        fault::pass(Point::ServerYielded);
        lifted
    }

    /// Takes back what [`Machine::yield_memory`] did, also what an earlier server did. Idempotent.
    pub fn keep_memory(&self) -> io::Result<()> {
        fault::pass(Point::ServerKeepBegun);
        self.cgroups().keep_memory_limit(self.spec().memory_bytes)?;
        let former = self.asleep().unwrap_or_default();
        let own = |pid: i32| former.scores.iter().find(|(known, _)| *known == pid);
        for _ in 0..PASSES_MAX {
            // A process that was forked since the thaw has its parent's.
            let pids = self.cgroups().pids();
            let raised = pids.into_iter().filter(|pid| score(*pid).ok().flatten() == Some(SLEEPER));
            let raised: Vec<i32> = raised.collect();
            if raised.is_empty() {
                break;
            }
            for pid in raised {
                set_score(pid, own(pid).map_or(0, |(_, score)| *score))?;
            }
        }
        fault::pass(Point::ServerKeepRanked);
        if let Some(limit) = &former.swap_limit {
            self.cgroups().set_swap_limit(limit)?;
        }
        fault::pass(Point::ServerKeepLimited);
        match fs::remove_file(self.spec().dir.join(ASLEEP_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn asleep(&self) -> Option<Asleep> {
        let path = self.spec().dir.join(ASLEEP_FILE);
        let found: files::Content<Asleep> = files::read(&path).ok()?;
        found.known(&path).filter(|asleep| asleep.run == self.run())
    }

    /// Moves its anonymous memory to swap and out of RAM, as long as it is frozen, `go_on` says so and swap is left. Blocks for about
    /// 2 ms a chunk; ends at most one chunk after a thaw. `waited` hears how long the kernel took for each chunk.
    ///
    /// # Errors
    /// When this process may not do that, or the kernel cannot.
    pub fn page_out(
        &self,
        go_on: &dyn Fn() -> bool,
        waited: &dyn Fn(Duration),
    ) -> io::Result<PagedOut> {
        let before = self.memory()?;
        let frozen = || go_on() && self.is_frozen();
        let mut room = self.cgroups().room_maker(self.spec().memory_bytes);
        let mut make = |bytes| timed(waited, || room.make(bytes));
        let mut end = self.advise(Advice::PageOut, &frozen, waited, u64::MAX)?;
        if end == End::Done {
            end = self.move_shared(&frozen, &mut make)?;
        }
        if end != End::CalledOff
            && let Err(error) = self.drop_copies(&frozen, &mut make)
        {
            // It is in swap all the same, and what is left is the first to go.
            tracing::warn!(machine = self.spec().machine, %error, "copies stay in RAM");
        }
        fault::pass(Point::ServerPagedOut);
        let memory = self.memory()?;
        let bytes = memory.swapped_bytes.saturating_sub(before.swapped_bytes);
        Ok(PagedOut { bytes, memory, end })
    }

    /// Asks the kernel to read back what is in swap, `bytes_max` at most, while `go_on` says so. Blocks.
    ///
    /// # Errors
    /// When this process may not do that, or the kernel cannot.
    pub fn prefetch(&self, go_on: &dyn Fn() -> bool, bytes_max: u64) -> io::Result<End> {
        self.advise(Advice::WillNeed, go_on, &|_| {}, bytes_max)
    }

    fn advise(
        &self,
        advice: Advice,
        go_on: &dyn Fn() -> bool,
        waited: &dyn Fn(Duration),
        most: u64,
    ) -> io::Result<End> {
        let mut left = most;
        for pid in self.cgroups().pids() {
            if !go_on() {
                return Ok(End::CalledOff);
            }
            let Some(part) = part_of(pid, advice)? else { continue };
            for chunk in part.ranges.into_iter().flat_map(chunks) {
                let bytes = chunk.end - chunk.start;
                if !go_on() || left < bytes {
                    return Ok(End::CalledOff);
                }
                if advice == Advice::PageOut && swap_left() < bytes {
                    return Ok(End::SwapFull);
                }
                left -= bytes;
                match timed(waited, || sys::advise(&part.pidfd, &chunk, advice)) {
                    Err(Errno::SRCH) => break,
                    // Locked memory, or a range that is no longer there.
                    Err(Errno::INVAL | Errno::NOMEM | Errno::AGAIN | Errno::INTR) | Ok(()) => {}
                    Err(errno) => return Err(errno.into()),
                }
                self.pass_chunk(advice);
            }
        }
        Ok(End::Done)
    }

    /// Moves what no advice reaches: shared memory, and what lies in `/dev/shm`. What it has of files may go with it.
    fn move_shared(&self, go_on: &dyn Fn() -> bool, make: &mut MakeRoom<'_>) -> io::Result<End> {
        let cgroups = self.cgroups();
        let (mut refusals, mut before) = (0, u64::MAX);
        while REFUSALS_MAX != refusals {
            let shared = cgroups.charge().map_or(0, |charge| charge.shared);
            if shared < SHARED_MIN {
                break;
            }
            // Also where the kernel gave up files instead, as for what is locked.
            refusals = if shared < before { 0 } else { refusals + 1 };
            before = shared;
            if !go_on() {
                return Ok(End::CalledOff);
            }
            if swap_left() < CHUNK {
                return Ok(End::SwapFull);
            }
            match make(CHUNK.min(shared)) {
                Ok(()) => {}
                Err(error) if is_not_at_once(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
            self.pass_chunk(Advice::PageOut);
        }
        Ok(End::Done)
    }

    fn pass_chunk(&self, advice: Advice) {
        let (server, init) = match advice {
            Advice::PageOut => (Point::ServerChunkOut, Point::InitChunkOut),
            Advice::WillNeed => (Point::ServerChunkBack, Point::InitChunkBack),
        };
        fault::pass(server);
        fault::pass_by(init, self.pid());
    }
}

impl Memory {
    fn add(&mut self, smaps_rollup: &str) {
        self.resident_bytes += kilobytes(smaps_rollup, "Pss:");
        self.anonymous_bytes += kilobytes(smaps_rollup, "Pss_Anon:");
        self.swapped_bytes += kilobytes(smaps_rollup, "SwapPss:");
    }

    /// With what the kernel counts itself, in place of what the processes tell.
    fn corrected(self, charge: Charge, file_bytes: u64) -> Self {
        let anonymous_bytes = charge.anonymous();
        Self {
            resident_bytes: anonymous_bytes.saturating_add(file_bytes),
            anonymous_bytes,
            swapped_bytes: charge.swapped.unwrap_or(self.swapped_bytes),
        }
    }

    /// Whether most of what has no file is in swap.
    pub fn is_paged_out(&self) -> bool {
        self.anonymous_bytes < self.swapped_bytes
    }
}

/// Gives up, for the calling thread, the right to lower `oom_score_adj` below what a process may set itself. With it the
/// kernel would take each value we set for the process's own floor from then on.
///
/// # Errors
/// When the kernel refuses.
pub fn yield_rank() -> io::Result<()> {
    let dropped = caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_RESOURCE);
    dropped.map_err(io::Error::other)
}

/// Heaps of a process with many threads. Each keeps what was freed in it: with the C library's eight for each core, a
/// server of 1,000 apps kept as much as it needed.
const HEAPS_MAX: i32 = 2;

/// To be called while the process has one thread: what one of its threads frees, another can then take.
pub fn share_heaps() {
    sys::bound_heaps(HEAPS_MAX);
}

/// Gives the kernel back what this process has freed: the allocator keeps what lies below something in use.
pub fn give_back() {
    sys::trim();
}

fn timed<T>(waited: &dyn Fn(Duration), act: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = act();
    waited(began.elapsed());
    done
}

/// What was in use a moment ago goes only when it is asked for again.
fn is_not_at_once(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, ResourceBusy, WouldBlock};
    matches!(error.kind(), Interrupted | ResourceBusy | WouldBlock)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// `None`: the process is gone.
fn score(pid: i32) -> io::Result<Option<i32>> {
    match fs::read_to_string(format!("/proc/{pid}/oom_score_adj")) {
        Ok(text) => Ok(text.trim_end().parse().ok()),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn set_score(pid: i32, score: i32) -> io::Result<()> {
    match fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()) {
        Err(error) if !is_gone(&error) => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn part_of(pid: i32, advice: Advice) -> io::Result<Option<Part>> {
    let Some(number) = Pid::from_raw(pid) else { return Ok(None) };
    let pidfd = match rustix::process::pidfd_open(number, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    match fs::read_to_string(format!("/proc/{pid}/smaps")) {
        Ok(smaps) => Ok(Some(Part { pidfd, ranges: anonymous(&smaps, advice) })),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Mappings without a file that have something to move.
fn anonymous(smaps: &str, advice: Advice) -> Vec<Range<u64>> {
    let wanted = match advice {
        Advice::PageOut => "Anonymous:",
        Advice::WillNeed => "Swap:",
    };
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if let Some(range) = header(line) {
            current = range;
        } else if line.starts_with(wanted) && 0 < kilobytes(line, wanted) {
            found.extend(current.take());
        }
    }
    found
}

/// The outer option: whether this line begins a mapping; the inner: whether it is a private one without a file.
fn header(line: &str) -> Option<Option<Range<u64>>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    let is_private = fields.next()?.ends_with('p');
    let inode = fields.nth(2)?;
    let is_special = fields.next().is_some_and(|name| name.starts_with("[v"));
    Some((is_private && inode == "0" && !is_special).then_some(start..end))
}

fn chunks(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        let end = (start / CHUNK * CHUNK).saturating_add(CHUNK).min(range.end);
        let chunk = start..end;
        start = end;
        (chunk.start < chunk.end).then_some(chunk)
    })
}

fn kilobytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0) * 1024
}

fn swap_left() -> u64 {
    let info = rustix::system::sysinfo();
    info.freeswap * u64::from(info.mem_unit)
}

/// The swap of the whole host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swap {
    /// Of all swap that is on.
    pub total_bytes: u64,
    /// Of that, in use.
    pub used_bytes: u64,
    /// RAM in which compressed swap (zram) keeps what is in use.
    pub store_bytes: u64,
}

impl Swap {
    /// Reads it.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn of_this_host() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/swaps")?;
        Ok(Self::parse(&text, |name| {
            fs::read_to_string(Path::new("/sys/block").join(name).join("mm_stat")).ok()
        }))
    }

    fn parse(swaps: &str, mm_stat: impl Fn(&str) -> Option<String>) -> Self {
        let mut sum = Self::default();
        for line in swaps.lines().skip(1) {
            // A name may hold spaces, which the kernel writes as \040.
            let fields: Vec<_> = line.split_ascii_whitespace().collect();
            let [name, _, size, used, _] = fields[..] else { continue };
            let bytes = |text: &str| text.parse::<u64>().unwrap_or(0) * 1024;
            sum.total_bytes += bytes(size);
            sum.used_bytes += bytes(used);
            let device = name.rsplit('/').next().unwrap_or_default();
            let stat = device.starts_with("zram").then(|| mm_stat(device)).flatten();
            // orig_data_size compr_data_size mem_used_total …
            let store =
                stat.and_then(|text| text.split_ascii_whitespace().nth(2)?.parse::<u64>().ok());
            sum.store_bytes += store.unwrap_or(0);
        }
        sum
    }

    /// The part of the store that these bytes in swap take: compression differs from page to page, and nothing tells
    /// whose is whose.
    pub fn store_of(&self, swapped_bytes: u64) -> u64 {
        let share = u128::from(swapped_bytes) * u128::from(self.store_bytes);
        let part = share.checked_div(u128::from(self.used_bytes)).unwrap_or(0);
        u64::try_from(part).unwrap_or(u64::MAX).min(self.store_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
00400000-00500000 r-xp 00000000 fe:00 123                        /bin/x
Anonymous:             0 kB
00600000-00700000 rw-p 00000000 fe:00 123                        /bin/x
Anonymous:             8 kB
Swap:                  0 kB
01000000-01200000 rw-p 00000000 00:00 0                          [heap]
Anonymous:            12 kB
Swap:                  0 kB
7f0000000000-7f0000001000 rw-p 00000000 00:00 0
Anonymous:             0 kB
Swap:                  4 kB
7f0000100000-7f0000101000 rw-s 00000000 00:01 99                 /dev/zero (deleted)
Anonymous:             4 kB
7fff00000000-7fff00001000 r-xp 00000000 00:00 0                  [vdso]
Anonymous:             4 kB
";

    #[test]
    fn only_private_memory_without_a_file_moves() {
        let found = |advice| {
            let found = anonymous(SMAPS, advice);
            found.iter().map(|range| (range.start, range.end)).collect::<Vec<_>>()
        };
        assert_eq!(found(Advice::PageOut), [(0x0100_0000, 0x0120_0000)]);
        assert_eq!(found(Advice::WillNeed), [(0x7f00_0000_0000, 0x7f00_0000_1000)]);
    }

    #[test]
    fn a_range_is_cut_at_the_chunks_borders() {
        let cut = chunks(0x1f_f000..0x60_1000).map(|chunk| (chunk.start, chunk.end));
        let borders = [0x1f_f000, 0x20_0000, 0x40_0000, 0x60_0000, 0x60_1000];
        assert!(cut.eq(borders.iter().copied().zip(borders[1..].iter().copied())));
        assert_eq!(chunks(u64::MAX - 5..u64::MAX).count(), 1);
        assert_eq!(chunks(4096..4096).count(), 0);
    }

    #[test]
    fn a_swap_limit_is_put_back_by_whichever_server_sees_the_wake() -> io::Result<()> {
        let dir = crate::scratch_dir("swap-limit")?;
        let limit = dir.join("memory.swap.max");
        fs::write(dir.join("cgroup.procs"), "")?;
        fs::write(&limit, "512")?;
        // A file is not cut as the kernel does it: all values are equally long.
        let now = || fs::read_to_string(&limit);
        // Each is the view of another server: one is killed after the lift, one finds the sleeper and lifts again.
        let server = || crate::launch::test_machine(&dir, 7);
        server().yield_memory()?;
        assert_eq!(now()?, "max");
        server().yield_memory()?;
        server().keep_memory()?;
        assert_eq!(now()?, "512");
        // One that is killed when the limit is back and the disk says otherwise changes nothing.
        server().yield_memory()?;
        fs::write(&limit, "512")?;
        server().keep_memory()?;
        assert_eq!((now()?.as_str(), dir.join(ASLEEP_FILE).exists()), ("512", false));
        // Another run has a limit of its own.
        server().yield_memory()?;
        fs::write(&limit, "256")?;
        crate::launch::test_machine(&dir, 8).keep_memory()?;
        assert_eq!(now()?, "256");
        fs::remove_dir_all(dir)
    }

    #[test]
    fn memory_is_summed_over_processes() {
        let mut sum = Memory::default();
        let one = "00400000-7ff rollup\nPss:  100 kB\nPss_Anon:  60 kB\nSwapPss:  7 kB\n";
        sum.add(one);
        sum.add(one);
        assert_eq!(sum.resident_bytes, 200 * 1024);
        assert_eq!((sum.anonymous_bytes, sum.swapped_bytes), (120 * 1024, 14 * 1024));
        assert!(!sum.is_paged_out());
    }

    #[test]
    fn what_a_memory_cgroup_counts_is_known_better() {
        let told = Memory { resident_bytes: 700, anonymous_bytes: 300, swapped_bytes: 20 };
        let charge = Charge { private: 290, shared: 5000, swapped: None };
        let known = told.corrected(charge, 100);
        let expected = Memory { resident_bytes: 5390, anonymous_bytes: 5290, swapped_bytes: 20 };
        assert_eq!(known, expected);
        let charge = Charge { swapped: Some(9000), ..charge };
        assert!(told.corrected(charge, 100).is_paged_out());
    }

    #[test]
    fn the_store_of_compressed_swap_counts() {
        let swaps = "Filename Type Size Used Priority\n\
                     /dev/zram0 partition 1000 400 100\n\
                     /var/a\\040b file 2000 0 -2\nbroken\n";
        let swap = Swap::parse(swaps, |_| Some("409600 90000 102400 0 0 0 0 0 0".to_owned()));
        assert_eq!(swap.total_bytes, 3000 * 1024);
        assert_eq!((swap.used_bytes, swap.store_bytes), (400 * 1024, 102_400));
        assert_eq!(swap.store_of(200 * 1024), 51_200);
        let file = Swap::parse("h\n/a file 100 50 -2\n", |_| None);
        assert_eq!(file.store_of(50 * 1024), 0);
        assert_eq!(Swap::default().store_of(1), 0);
    }
}
