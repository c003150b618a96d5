//! Two connections that become one.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::Notify;

/// What is on its way in each direction, in bytes.
const BUFFER_BYTES: usize = 8 * 1024;
/// Who has heard all, and goes on saying what nobody takes, is listened to for so long: bytes that are not read would make
/// the end a reset, which takes what was not read on the other side along.
const LINGER: Duration = Duration::from_secs(1);

/// Carries bytes both ways until each side has said its end, which the other is told. Who takes no more is not an error:
/// what that side still says reaches the other, as the last words of a program that ends while somebody types do.
///
/// # Errors
/// When what one side says cannot be read any more; the other direction ends with it.
pub async fn relay(
    near: impl AsyncRead + AsyncWrite,
    far: impl AsyncRead + AsyncWrite,
) -> io::Result<()> {
    let ((from_near, to_near), (from_far, to_far)) = (split(near), split(far));
    let (there_refused, back_refused) = (Notify::new(), Notify::new());
    let mut there = pin!(carry(from_near, to_far, &there_refused));
    let mut back = pin!(carry(from_far, to_near, &back_refused));
    tokio::select! {
        ended = &mut there => { ended?; rest(back, &back_refused).await }
        ended = &mut back => { ended?; rest(there, &there_refused).await }
    }
}

/// The rest of one direction when the other one is over.
async fn rest(way: impl Future<Output = io::Result<()>>, refused: &Notify) -> io::Result<()> {
    let in_vain = async {
        refused.notified().await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        ended = way => ended,
        () = in_vain => Ok(()),
    }
}

/// Until there is nothing more to read; `refused` hears when nobody takes it, and what comes is dropped.
async fn carry(
    mut from: ReadHalf<impl AsyncRead>,
    mut to: WriteHalf<impl AsyncWrite>,
    refused: &Notify,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut is_taken = true;
    while let length @ 1.. = from.read(&mut buffer).await? {
        let sent = async {
            to.write_all(&buffer[..length]).await?;
            to.flush().await
        };
        if is_taken && let Err(error) = sent.await {
            tracing::debug!(%error, "a side of a relay takes no more");
            is_taken = false;
            refused.notify_one();
        }
    }
    // Who has gone need not be told.
    to.shutdown().await.ok();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;
    use tokio::net::UnixStream;

    #[tokio::test]
    async fn last_words_arrive_though_who_said_them_takes_no_more() {
        let ((mut caller, near), (far, mut program)) = (duplex(64), duplex(64));
        caller.write_all(b"typed too late").await.expect("room");
        program.write_all(b"last words").await.expect("room");
        drop(program);
        let heard = async {
            let mut heard = Vec::new();
            caller.read_to_end(&mut heard).await.expect("the end");
            drop(caller);
            heard
        };
        let (relayed, heard) = tokio::join!(relay(near, far), heard);
        relayed.expect("no error");
        assert_eq!(heard, b"last words");
    }

    #[tokio::test]
    async fn they_arrive_also_before_much_that_was_typed() {
        let ((mut caller, near), (far, mut program)) =
            (UnixStream::pair().expect("a pair"), duplex(64));
        program.write_all(b"last words").await.expect("room");
        drop(program);
        let relayed = tokio::spawn(relay(near, far));
        caller.write_all(&vec![b'x'; 1 << 20]).await.expect("it is read");
        let mut heard = Vec::new();
        caller.read_to_end(&mut heard).await.expect("an end, no reset");
        assert_eq!(heard, b"last words");
        drop(caller);
        relayed.await.expect("no panic").expect("no error");
    }

    #[tokio::test]
    async fn a_program_whose_caller_has_gone_is_not_listened_to() {
        let ((caller, near), (far, mut program)) = (duplex(64), duplex(64));
        drop(caller);
        let relayed = tokio::spawn(relay(near, far));
        while program.write_all(b"more").await.is_ok() {}
        relayed.await.expect("no panic").expect("no error");
    }

    #[tokio::test]
    async fn each_side_may_end_before_the_other() {
        let ((mut caller, near), (far, mut server)) = (duplex(64), duplex(64));
        let relayed = tokio::spawn(relay(near, far));
        caller.write_all(b"question").await.expect("room");
        caller.shutdown().await.expect("open");
        let mut asked = Vec::new();
        server.read_to_end(&mut asked).await.expect("the end");
        server.write_all(b"answer").await.expect("the way back is open");
        drop(server);
        let mut answer = Vec::new();
        caller.read_to_end(&mut answer).await.expect("the end");
        assert_eq!((&asked[..], &answer[..]), (&b"question"[..], &b"answer"[..]));
        relayed.await.expect("no panic").expect("no error");
    }

    #[tokio::test]
    async fn a_side_that_breaks_ends_both_directions() {
        let (_caller, near) = duplex(64);
        let (mut far, gone) = UnixStream::pair().expect("a pair");
        // What nobody reads makes an end a reset.
        far.write_all(b"unread").await.expect("room");
        drop(gone);
        assert!(relay(near, far).await.is_err());
    }
}
