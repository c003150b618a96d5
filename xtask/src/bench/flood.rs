//! What a Machine runs that floods the proxy, until it is stopped.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;

use anyhow::{Context, Result, bail};

/// Connections that ask without end.
const ASKING: usize = 16;
/// Requests that are written at once.
const PIPELINED: usize = 32;
/// Nearly as many as a caller may have.
const STALLED: usize = 2_000;

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: flooded\r\n\r\n";
const LAST: &str = "GET / HTTP/1.1\r\nHost: flooded\r\nConnection: close\r\n\r\n";

/// Requests on connections that are kept, as fast as they are answered.
pub(super) const REQUESTS: &str = "requests";
/// Connections as fast as they are taken, each closed with its request unanswered.
pub(super) const CONNECTIONS: &str = "connections";
/// Heads that never end, a byte at a time.
pub(super) const HEADS: &str = "heads";

/// Floods an address in one of those ways.
///
/// # Errors
/// When an argument is wrong; what the other side does is none.
pub(crate) fn flood(args: &[String]) -> Result<bool> {
    let [way, address] = args else { bail!("a way to flood and an address are wanted") };
    let address: SocketAddr = address.parse().context("the address")?;
    match way.as_str() {
        REQUESTS => {
            (0..ASKING).for_each(|_| drop(thread::spawn(move || ask(address))));
            loop {
                thread::park();
            }
        }
        CONNECTIONS => loop {
            let Ok(mut stream) = TcpStream::connect(address) else { continue };
            stream.write_all(LAST.as_bytes()).ok();
        },
        HEADS => loop {
            stall(address);
        },
        other => bail!("no way to flood: {other}"),
    }
}

/// Asks on one connection after the other.
fn ask(address: SocketAddr) {
    let requests = REQUEST.repeat(PIPELINED);
    let mut answers = vec![0; 64 * 1024];
    loop {
        let Ok(mut stream) = TcpStream::connect(address) else { continue };
        let Ok(mut writer) = stream.try_clone() else { continue };
        let requests = requests.clone();
        let writing = thread::spawn(move || while writer.write_all(requests.as_bytes()).is_ok() {});
        while matches!(stream.read(&mut answers), Ok(1..)) {}
        drop(stream);
        writing.join().ok();
    }
}

/// A byte on each of many connections in turn, until one of them is refused it.
fn stall(address: SocketAddr) {
    let mut open: Vec<_> = (0..STALLED).filter_map(|_| TcpStream::connect(address).ok()).collect();
    let mut head =
        b"GET / HTTP/1.1\r\nHost: flooded\r\nX-Long: ".iter().chain(std::iter::repeat(&b'x'));
    while let Some(byte) = head.next()
        && !open.is_empty()
    {
        open.retain_mut(|stream| stream.write_all(&[*byte]).is_ok());
    }
}
