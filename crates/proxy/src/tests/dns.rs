//! DNS through the whole proxy. Callers here come from loopback, so the test's network is there.

use std::net::Ipv4Addr;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::spawn_local;

use super::world::*;

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 77;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    message
}

async fn ask_udp(world: &World, question: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let bytes = question.to_vec().expect("it can be written");
    socket.send_to(&bytes, world.dns_udp).await.expect("the proxy listens");
    let mut answer = vec![0; 4096];
    let length = socket.recv(&mut answer).await.expect("an answer comes");
    Message::from_vec(&answer[..length]).expect("it can be read")
}

async fn ask_tcp(world: &World, question: &Message) -> Message {
    let mut stream = TcpStream::connect(world.dns_tcp).await.expect("the proxy listens");
    let bytes = question.to_vec().expect("it can be written");
    stream.write_u16(bytes.len().try_into().expect("short")).await.expect("it reads");
    stream.write_all(&bytes).await.expect("it reads");
    let mut answer = vec![0; stream.read_u16().await.expect("a length comes").into()];
    stream.read_exact(&mut answer).await.expect("an answer comes");
    Message::from_vec(&answer).expect("it can be read")
}

#[test]
fn an_asker_of_no_network_is_refused() {
    run(|mut world| async move {
        world.publish(app("started", 1)).await;
        let answer = ask_udp(&world, &question("app.flycast.", RecordType::AAAA)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    });
}
