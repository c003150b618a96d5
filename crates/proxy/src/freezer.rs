//! What the server has handed over of one run: the file that thaws it, and its CPU time.
//!
//! Both are files of a control group that dies with the run, so a descriptor of an earlier run can do
//! nothing to a later one: the kernel answers with an error.

use std::io;
use std::os::fd::OwnedFd;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Freezer {
    run: u64,
    thaw: String,
    file: OwnedFd,
    cpu: Option<OwnedFd>,
}

impl Freezer {
    /// Takes what came with a message; `None` if it is not what the message is about.
    pub(crate) fn new(run: u64, thaw: String, inode: u64, files: Vec<OwnedFd>) -> Option<Self> {
        let mut files = files.into_iter();
        let (file, cpu) = (files.next()?, files.next());
        let seen = rustix::fs::fstat(&file).ok()?.st_ino;
        (seen == inode).then_some(Self { run, thaw, file, cpu })
    }

    pub(crate) fn run(&self) -> u64 {
        self.run
    }

    /// Lets the run go on; nothing has to be waited for.
    pub(crate) fn thaw(&self) -> io::Result<()> {
        rustix::io::pwrite(&self.file, self.thaw.as_bytes(), 0)?;
        Ok(())
    }

    /// How long its processes have used a processor, in microseconds; `None` where nobody counts that.
    pub(crate) fn cpu_micros(&self) -> Option<u64> {
        let mut text = [0; 512];
        let read = rustix::io::pread(self.cpu.as_ref()?, &mut text, 0).ok()?;
        cpu_micros(std::str::from_utf8(&text[..read]).ok()?)
    }
}

/// `cpu.stat` says `usage_usec N`, `cpuacct.usage` nanoseconds.
fn cpu_micros(text: &str) -> Option<u64> {
    match text.strip_prefix("usage_usec ") {
        Some(rest) => rest.lines().next()?.parse().ok(),
        None => text.trim_end().parse::<u64>().ok().map(|nanos| nanos / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (OwnedFd, u64) {
        let mut file = tempfile::tempfile().expect("a file");
        io::Write::write_all(&mut file, text.as_bytes()).expect("written");
        let file = OwnedFd::from(file);
        let inode = rustix::fs::fstat(&file).expect("a file").st_ino;
        (file, inode)
    }

    #[test]
    fn cpu_time_is_read_in_both_notations() {
        assert_eq!(cpu_micros("usage_usec 1500\nuser_usec 1000\n"), Some(1500));
        assert_eq!(cpu_micros("1500000\n"), Some(1500));
        assert_eq!(cpu_micros("nonsense"), None);
    }

    #[test]
    fn descriptors_of_another_message_are_not_used() {
        let (mine, inode) = file("1");
        let (other, another) = file("1");
        assert!(Freezer::new(1, "0".to_owned(), another, vec![mine]).is_none());
        assert!(Freezer::new(1, "0".to_owned(), inode, Vec::new()).is_none());
        assert!(Freezer::new(1, "0".to_owned(), another, vec![other]).is_some());
    }

    #[test]
    fn a_thaw_writes_what_the_server_said() {
        let (mine, inode) = file("FROZEN");
        let copy = mine.try_clone().expect("a descriptor");
        let freezer = Freezer::new(1, "THAWED".to_owned(), inode, vec![mine]).expect("it fits");
        freezer.thaw().expect("written");
        let mut text = [0; 16];
        let read = rustix::io::pread(&copy, &mut text, 0).expect("read");
        assert_eq!(&text[..read], b"THAWED");
    }
}
