//! Having the kernel move what is charged to a Machine, whoever maps it: a little room is asked for again and again, by
//! `memory.reclaim` on v2; on v1 by a limit below what is in use, which the kernel takes once it has made that room, and
//! which a process beside puts back.
//!
//! `memory.force_empty` of v1 could not be called off when the Machine is needed.

use std::io;

use perch_core::fault::{self, Point};

use super::charge::{Account, number};
use super::reclaim::Reclaimer;
use super::{Cgroups, named, write_existing};

const RECLAIM: &str = "memory.reclaim";
/// What has no file, or that first. The words are known since 6.16 and 6.9.
const ANONYMOUS_FIRST: [&str; 2] = ["swappiness=max", "swappiness=200"];
const LIMIT: &str = "memory.limit_in_bytes";
const USAGE: &str = "memory.usage_in_bytes";

/// The way to room in one Machine, with this limit of memory, which stays.
#[derive(Debug)]
pub(crate) struct RoomMaker {
    account: Option<Account>,
    limit: Option<u64>,
    /// Since it was first needed, on v1.
    reclaimer: Option<Reclaimer>,
}

impl RoomMaker {
    /// Has the kernel free so many bytes. Blocks.
    ///
    /// # Errors
    /// `WouldBlock` or `ResourceBusy` where so much could not go at once, `NotFound` where the kernel has no way.
    pub(crate) fn make(&mut self, bytes: u64) -> io::Result<()> {
        match (&self.account, self.limit) {
            (Some(Account::V2(dir)), _) => {
                let file = dir.join(RECLAIM);
                let ask = |word: &str| write_existing(&file, format!("{bytes} {word}").trim_end());
                let is_unknown = |made: &io::Result<()>| {
                    made.as_ref().is_err_and(|it| it.kind() == io::ErrorKind::InvalidInput)
                };
                let made = ANONYMOUS_FIRST.iter().map(|word| ask(word)).find(|it| !is_unknown(it));
                let made = made.unwrap_or_else(|| ask(""));
                fault::pass(Point::ServerRoomMade);
                made.map_err(named("make room by", &file))
            }
            (Some(Account::V1(dir)), Some(limit)) => {
                let file = dir.join(LIMIT);
                let used = number(&dir.join(USAGE)).ok_or(io::ErrorKind::NotFound)?;
                let reclaimer = match self.reclaimer.take() {
                    Some(known) => known,
                    None => Reclaimer::spawn(file.clone(), limit)?,
                };
                let reclaimer = self.reclaimer.insert(reclaimer);
                let made = reclaimer.free_down_to(used.saturating_sub(bytes));
                fault::pass(Point::ServerRoomMade);
                made.map_err(named("make room by", &file))
            }
            (Some(Account::V1(_)), None) | (None, _) => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Cgroups {
    /// For a Machine with this limit of memory.
    pub(crate) fn room_maker(&self, limit: Option<u64>) -> RoomMaker {
        RoomMaker { account: self.account_of_memory(), limit, reclaimer: None }
    }

    /// Sees to it that a Machine has its own limit of memory: what makes room may have been killed with the server.
    pub(crate) fn keep_memory_limit(&self, limit: Option<u64>) -> io::Result<()> {
        let (Some(Account::V1(dir)), Some(limit)) = (self.account_of_memory(), limit) else {
            return Ok(());
        };
        let file = dir.join(LIMIT);
        match number(&file) {
            // It is rounded down to whole pages.
            Some(found) if found < limit / PAGE * PAGE => {
                write_existing(&file, &limit.to_string()).map_err(named("put back", &file))
            }
            Some(_) | None => Ok(()),
        }
    }
}

const PAGE: u64 = 4096;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cgroup::V1;

    #[test]
    fn v1_has_its_own_limit_again_whatever_happened() -> io::Result<()> {
        let dir = crate::scratch_dir("room-1")?;
        let v1 = V1 { dir: dir.clone(), options: "rw,memory".to_owned() };
        let cgroups = Cgroups { v1: vec![v1], v2: None, v2_root: dir.clone() };
        // A file is not cut as the kernel does it: all values are equally long.
        fs::write(dir.join(USAGE), "5000000\n")?;
        fs::write(dir.join(LIMIT), "4999000")?;
        cgroups.keep_memory_limit(Some(8_192_000))?;
        assert_eq!(fs::read_to_string(dir.join(LIMIT))?, "8192000");
        assert!(cgroups.room_maker(None).make(1000).is_err(), "what would be put back?");
        fs::remove_dir_all(dir)
    }

    #[test]
    fn v2_is_asked_for_bytes() -> io::Result<()> {
        let dir = crate::scratch_dir("room-2")?;
        let cgroups = Cgroups { v1: Vec::new(), v2: Some(dir.clone()), v2_root: dir.clone() };
        let mut room = cgroups.room_maker(None);
        let error = room.make(4096).expect_err("an old kernel");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        fs::write(dir.join(RECLAIM), "")?;
        room.make(4096)?;
        assert_eq!(fs::read_to_string(dir.join(RECLAIM))?, "4096 swappiness=max");
        fs::remove_dir_all(dir)
    }
}
