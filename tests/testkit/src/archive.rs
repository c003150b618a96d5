//! Writes tar archives by hand, so that tests can write those that a library refuses.

/// What an entry is.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A file with contents and mode.
    File(Vec<u8>, u32),
    /// A directory.
    Dir,
    /// A directory with this mode.
    DirMode(u32),
    /// A symbolic link to this.
    Symlink(String),
    /// A hard link to this.
    Hardlink(String),
    /// A character device.
    Device(u32, u32),
}

/// A tar archive in memory.
#[derive(Debug, Clone, Default)]
pub struct Archive {
    bytes: Vec<u8>,
}

const BLOCK: usize = 512;

impl Archive {
    /// Adds an entry; the name is written as it is, at most 100 bytes of it.
    #[must_use]
    pub fn with(self, name: &str, entry: &Entry) -> Self {
        self.with_owner(name, entry, 0)
    }

    /// Adds an entry that belongs to this user, and to the group of the same number.
    #[must_use]
    pub fn with_owner(mut self, name: &str, entry: &Entry, owner: u32) -> Self {
        let contents = match entry {
            Entry::File(contents, _) => contents.as_slice(),
            _ => &[],
        };
        self.bytes.extend_from_slice(&header(name, entry, contents.len(), owner));
        self.bytes.extend_from_slice(contents);
        let padded = self.bytes.len().next_multiple_of(BLOCK);
        self.bytes.resize(padded, 0);
        self
    }

    /// The archive with its end mark.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }
}

fn header(name: &str, entry: &Entry, size: usize, owner: u32) -> [u8; BLOCK] {
    let (kind, mode, link, device) = match entry {
        Entry::File(_, mode) => (b'0', *mode, "", (0, 0)),
        Entry::Hardlink(to) => (b'1', 0o644, to.as_str(), (0, 0)),
        Entry::Symlink(to) => (b'2', 0o777, to.as_str(), (0, 0)),
        Entry::Device(major, minor) => (b'3', 0o666, "", (*major, *minor)),
        Entry::Dir => (b'5', 0o755, "", (0, 0)),
        Entry::DirMode(mode) => (b'5', *mode, "", (0, 0)),
    };
    let mut block = [0_u8; BLOCK];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, &name.as_bytes()[..name.len().min(100)]);
    put(100, format!("{mode:07o}\0").as_bytes());
    put(108, format!("{owner:07o}\0{owner:07o}\0").as_bytes());
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, &link.as_bytes()[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    put(329, format!("{:07o}\0", device.0).as_bytes());
    put(337, format!("{:07o}\0", device.1).as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn the_system_tar_reads_what_we_write() {
        let archive = Archive::default()
            .with("bin/x", &Entry::File(b"hello".to_vec(), 0o755))
            .with("../evil", &Entry::Symlink("/etc".to_owned()))
            .finish();
        let mut tar = Command::new("tar")
            .args(["-tvPf", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tar is part of every system");
        let mut stdin = tar.stdin.take().expect("it is piped");
        stdin.write_all(&archive).expect("tar reads");
        drop(stdin);
        let output = tar.wait_with_output().expect("tar ends");
        let list = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{list}");
        assert!(list.contains("bin/x") && list.contains("../evil -> /etc"), "{list}");
    }
}
