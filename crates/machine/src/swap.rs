//! Swap for Machines that sleep: a file, or compressed memory (zram), made and removed when told to.
//!
//! Both belong to the whole host once they are on. The header is written here: its format is that of `mkswap`, version 1.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FallocateFlags, FileType, Mode};
use rustix::io::Errno;

use crate::sys;

const CONTROL: &str = "/sys/class/zram-control";
/// Where version, last page and number of bad pages are, after a boot block.
const VERSION_AT: usize = 1024;
const MAGIC: &[u8; 10] = b"SWAPSPACE2";
/// How long a new device may take to appear.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(1);
const BLOCK: usize = 1 << 20;

/// Makes a file for swap that nobody but root reads, and switches it on. Nothing is left when that fails.
///
/// # Errors
/// When there is a file already, no room for it, or the file system cannot hold swap.
pub fn make_file(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    let made = fill(&mut file, path, bytes);
    if made.is_err()
        && let Err(error) = fs::remove_file(path)
    {
        tracing::warn!(%error, path = %path.display(), "could not remove what is no swap");
    }
    made
}

fn fill(file: &mut File, path: &Path, bytes: u64) -> io::Result<()> {
    let page = rustix::param::page_size();
    let allocated = rustix::fs::fallocate(&*file, FallocateFlags::empty(), 0, bytes);
    if let Err(errno) = allocated
        && !matches!(errno, Errno::OPNOTSUPP | Errno::NOSYS)
    {
        return Err(errno.into());
    }
    if allocated.is_ok() {
        write_header(file, page, bytes)?;
        match switch_on(path, None) {
            // Some file systems take for swap only what was written.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            other => return other,
        }
    }
    write_zeros(file, bytes)?;
    write_header(file, page, bytes)?;
    switch_on(path, None)
}

fn write_zeros(file: &mut File, bytes: u64) -> io::Result<()> {
    file.rewind()?;
    io::copy(&mut io::repeat(0).take(bytes), &mut io::BufWriter::with_capacity(BLOCK, &*file))?;
    file.sync_all()
}

fn write_header(file: &mut File, page: usize, bytes: u64) -> io::Result<()> {
    file.rewind()?;
    file.write_all(&header(page, bytes)?)?;
    file.sync_all()
}

/// The first page.
fn header(page: usize, bytes: u64) -> io::Result<Vec<u8>> {
    let pages = u32::try_from(bytes / page as u64).map_err(io::Error::other)?;
    let last = pages.checked_sub(1).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut header = vec![0; page];
    header[VERSION_AT..VERSION_AT + 4].copy_from_slice(&1_u32.to_ne_bytes());
    header[VERSION_AT + 4..VERSION_AT + 8].copy_from_slice(&last.to_ne_bytes());
    header[page - MAGIC.len()..].copy_from_slice(MAGIC);
    Ok(header)
}

/// Switches on what has a header. With a rank it is used before what has a lower one, or none.
///
/// # Errors
/// When the kernel refuses; `ResourceBusy` when it is on already.
pub fn switch_on(path: &Path, rank: Option<u16>) -> io::Result<()> {
    sys::swap_on(&c_path(path)?, rank)
}

/// Switches off; what is in it comes back to memory, which takes a second for 0.2 to 1 GB. `false`: it was not on.
///
/// # Errors
/// When the kernel refuses, as for want of memory.
pub fn switch_off(path: &Path) -> io::Result<bool> {
    match sys::swap_off(&c_path(path)?) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Whether the kernel has compressed memory as a device.
pub fn has_zram() -> bool {
    Path::new(CONTROL).join("hot_add").exists()
}

/// Makes a device of compressed memory that shows `bytes`, and switches it on as the first choice. `node` is where a
/// device node is made on a host that makes none. Answers the device's number. Nothing is left when that fails.
///
/// # Errors
/// When the kernel lacks or refuses it.
pub fn make_zram(bytes: u64, node: &Path) -> io::Result<u32> {
    let number = fs::read_to_string(Path::new(CONTROL).join("hot_add"))?;
    let number: u32 = number.trim().parse().map_err(io::Error::other)?;
    let made = set_up_zram(number, bytes, node);
    if made.is_err()
        && let Err(error) = remove_zram(number, node)
    {
        tracing::warn!(%error, number, "could not remove a device of compressed memory");
    }
    made.map(|()| number)
}

fn set_up_zram(number: u32, bytes: u64, node: &Path) -> io::Result<()> {
    fs::write(block(number).join("disksize"), bytes.to_string())?;
    let device = device(number, node)?;
    let mut file = OpenOptions::new().read(true).write(true).open(&device)?;
    write_header(&mut file, rustix::param::page_size(), bytes)?;
    drop(file);
    switch_on(&device, Some(100))
}

fn block(number: u32) -> PathBuf {
    PathBuf::from(format!("/sys/block/zram{number}"))
}

/// The node that the host makes, else one of our own.
fn device(number: u32, node: &Path) -> io::Result<PathBuf> {
    let usual = PathBuf::from(format!("/dev/zram{number}"));
    let deadline = Instant::now() + DEVICE_TIMEOUT;
    while !usual.exists() {
        if deadline <= Instant::now() {
            make_node(number, node)?;
            return Ok(node.to_owned());
        }
        std::thread::sleep(DEVICE_TIMEOUT / 20);
    }
    Ok(usual)
}

fn make_node(number: u32, node: &Path) -> io::Result<()> {
    let text = fs::read_to_string(block(number).join("dev"))?;
    let numbers = text.trim().split_once(':');
    let numbers =
        numbers.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    let (major, minor) = numbers.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    let device = rustix::fs::makedev(major, minor);
    match rustix::fs::mknodat(CWD, node, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, device) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Switches such a device off and removes it. Idempotent.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_zram(number: u32, node: &Path) -> io::Result<()> {
    switch_off(&PathBuf::from(format!("/dev/zram{number}")))?;
    switch_off(node)?;
    if block(number).exists() {
        fs::write(block(number).join("reset"), "1")?;
        fs::write(Path::new(CONTROL).join("hot_remove"), number.to_string())?;
    }
    match fs::remove_file(node) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_as_mkswap_writes_it() -> io::Result<()> {
        let header = header(4096, 1 << 20)?;
        assert_eq!(header.len(), 4096);
        assert_eq!(header[1024..1032], [1_u32.to_ne_bytes(), 255_u32.to_ne_bytes()].concat());
        assert_eq!(&header[4086..], b"SWAPSPACE2");
        assert!(super::header(4096, 100).is_err(), "less than a page");
        assert!(super::header(4096, u64::MAX).is_err());
        Ok(())
    }

    #[test]
    fn what_is_no_swap_is_not_switched_off() -> io::Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let dir = crate::scratch_dir("swap")?;
        let file = dir.join("plain");
        fs::write(&file, "no swap")?;
        assert!(!switch_off(&file)?);
        assert!(!switch_off(&dir.join("absent"))?);
        assert!(switch_on(&file, None).is_err());
        fs::remove_dir_all(dir)
    }
}
