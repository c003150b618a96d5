//! The upstream of `warm`: answers every request with 64 bytes, as fast as it reads.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, Result};

/// 64 bytes of body.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n";

/// A head of the benchmark is 200 bytes with all that a proxy adds.
const HEAD_BYTES_MAX: usize = 4096;

/// Serves a port for ever.
pub(crate) fn upstream(args: &[String]) -> Result<bool> {
    let port: u16 = args.first().context("no port given")?.parse()?;
    let listener = TcpListener::bind(("0.0.0.0", port)).context("listening")?;
    for stream in listener.incoming() {
        let stream = stream?;
        // A connection that breaks is the end of its thread and of nothing else.
        std::thread::spawn(move || drop(serve(stream)));
    }
    Ok(true)
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0_u8; HEAD_BYTES_MAX];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..])?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        while let Some(end) = head_end(&buffer[..filled]) {
            stream.write_all(ANSWER)?;
            buffer.copy_within(end..filled, 0);
            filled -= end;
        }
    }
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_as_long_as_it_says() {
        let head = head_end(ANSWER).expect("it has a head");
        assert_eq!(ANSWER.len() - head, 64);
    }
}
