//! Which of the host's user and group ids the Machines of an app use: a range of 65,536 that nobody else has.
//!
//! An unprivileged user who owns a range (`/etc/subuid`) may signal every process in it, so these ranges lie where no
//! distribution gives any away, and what is given away there all the same is left out. Files on disk carry the
//! Machine's own ids (or are copies that are made anew), so a range may change from one run to the next.

use std::ops::{Range, RangeInclusive};

use crate::config::HostIdRange;

/// Host ids in one range.
const IDS: u32 = HostIdRange::PER_APP;
/// Above what is given to users (from 100,000) and to containers by systemd (up to 1,879,048,191).
const FIRST: u32 = 1 << 31;
/// Where the ranges of earlier releases began.
const FIRST_FORMERLY: u32 = 100_000;
/// The last range is left out: its end is what the kernel means by "no id".
const RANGES: u32 = (u32::MAX - FIRST) / IDS;
/// Ranges from here on are for servers with a tag, which begin at places of their own.
const TAGGED: u32 = RANGES / 2;

/// The ranges of one server, in the order of its apps' slots.
#[derive(Debug)]
pub(crate) struct HostIds {
    free: Vec<u32>,
}

impl HostIds {
    /// For the server with this tag, without what other users own.
    pub(crate) fn new(tag: Option<&str>, reserved: &[Range<u64>]) -> Self {
        let own = if tag.is_none() { 0..TAGGED } else { TAGGED..RANGES };
        let count = own.end - own.start;
        let begin = tag.map_or(0, |tag| u32::from_str_radix(tag, 16).unwrap_or(0) % count);
        let ranges = (0..count).map(|number| FIRST + (own.start + (begin + number) % count) * IDS);
        Self { free: ranges.filter(|base| !is_reserved(*base, reserved)).collect() }
    }

    /// For the server with this tag, of the ids that its operator chose.
    fn within(chosen: &RangeInclusive<u32>, tag: Option<&str>, reserved: &[Range<u64>]) -> Self {
        // The last id is never the highest of all, so this does not overflow.
        let count = (chosen.end() - chosen.start() + 1) / IDS;
        let begin = tag.map_or(0, |tag| u32::from_str_radix(tag, 16).unwrap_or(0) % count.max(1));
        let ranges = (0..count).map(|number| chosen.start() + (begin + number) % count * IDS);
        Self { free: ranges.filter(|base| !is_reserved(*base, reserved)).collect() }
    }

    /// Those that the operator chose, or those that nobody has, without what the host's files `/etc/subuid` and
    /// `/etc/subgid` give to users.
    ///
    /// # Errors
    /// When none of the chosen ones is left, or they are not there in this user namespace.
    pub(crate) fn of_this_host(
        tag: Option<&str>,
        chosen: Option<&HostIdRange>,
    ) -> anyhow::Result<Self> {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let reserved = reserved(&[read("/etc/subuid"), read("/etc/subgid")].join("\n"));
        let Some(HostIdRange(chosen)) = chosen else { return Ok(Self::new(tag, &reserved)) };
        for map in ["/proc/self/uid_map", "/proc/self/gid_map"] {
            anyhow::ensure!(
                is_mapped(&read(map), chosen),
                "host_ids has ids that do not exist here; {map} says which do"
            );
        }
        let found = Self::within(chosen, tag, &reserved);
        anyhow::ensure!(
            !found.free.is_empty(),
            "host_ids has none that /etc/subuid and /etc/subgid do not give to users"
        );
        Ok(found)
    }

    /// First id of the range of the app with this slot.
    pub(crate) fn base(&self, slot: u32) -> u32 {
        let at = usize::try_from(slot).unwrap_or(usize::MAX) % self.free.len().max(1);
        self.free.get(at).copied().unwrap_or(FIRST)
    }

    /// The same, and the base that an earlier release gave: its Machines may run on copies for that.
    pub(crate) fn all(&self, slot: u32) -> [u32; 2] {
        [self.base(slot), FIRST_FORMERLY.wrapping_add(slot.wrapping_mul(IDS))]
    }
}

/// Lines read `user:first:count`; others say nothing.
fn reserved(text: &str) -> Vec<Range<u64>> {
    let range = |line: &str| {
        let mut fields = line.trim().split(':').skip(1);
        let first: u64 = fields.next()?.parse().ok()?;
        let count: u64 = fields.next()?.parse().ok()?;
        Some(first..first.saturating_add(count))
    };
    text.lines().filter_map(range).collect()
}

/// Whether one line `inside outside count` of a map has all of them.
fn is_mapped(map: &str, ids: &RangeInclusive<u32>) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().flat_map(str::parse).collect();
        let [first, _, count] = numbers[..] else { return false };
        first <= u64::from(*ids.start()) && u64::from(*ids.end()) < first + count
    })
}

fn is_reserved(base: u32, reserved: &[Range<u64>]) -> bool {
    let own = u64::from(base)..u64::from(base) + u64::from(IDS);
    reserved.iter().any(|other| other.start < own.end && own.start < other.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_machine_gets_ids_that_a_user_owns() {
        let none = HostIds::new(None, &[]);
        assert_eq!((none.base(0), none.base(1)), (FIRST, FIRST + IDS));
        let text = format!("ann:100000:65536\n# {FIRST}\nbob:{}:1\nbroken:1", FIRST + IDS - 1);
        let some = HostIds::new(None, &reserved(&text));
        assert_eq!(some.base(0), FIRST + IDS, "bob owns the last id of the first range");
    }

    #[test]
    fn ranges_do_not_overlap_and_end_before_the_id_that_is_none() {
        for tag in [None, Some("00000000"), Some("ffffffff")] {
            let mut bases = HostIds::new(tag, &[]).free;
            assert!(16_000 < bases.len());
            bases.sort_unstable();
            assert!(bases.windows(2).all(|pair| IDS <= pair[1] - pair[0]));
            assert!(bases.iter().all(|base| base.checked_add(IDS).is_some()));
        }
    }

    #[test]
    fn chosen_ids_are_used_in_whole_ranges_and_no_others() {
        let chosen = 100_000..=100_000 + 3 * IDS - 2;
        let bases = |tag| HostIds::within(&chosen, tag, &[]).free;
        assert_eq!(bases(None), [100_000, 100_000 + IDS]);
        let mut of_tagged = bases(Some("00000001"));
        of_tagged.sort_unstable();
        assert_eq!(of_tagged, bases(None));
        let reserved = reserved("ann:100000:1");
        assert_eq!(HostIds::within(&chosen, None, &reserved).free, [100_000 + IDS]);
    }

    #[test]
    fn ids_that_a_user_namespace_lacks_are_known() {
        let chosen = 100_000..=200_000;
        assert!(is_mapped("         0          0 4294967295\n", &chosen));
        assert!(is_mapped("0 100000 65536\n100000 500000 200000\n", &chosen));
        for map in ["", "0 100000 65536\n", "0 0 200000\n", "100001 0 300000\n", "x"] {
            assert!(!is_mapped(map, &chosen), "{map:?}");
        }
    }

    #[test]
    fn two_servers_use_ranges_of_their_own() {
        let base = |tag| HostIds::new(tag, &[]).base(0);
        assert_ne!(base(None), base(Some("00000001")));
        assert_ne!(base(Some("00000001")), base(Some("00000002")));
    }
}
