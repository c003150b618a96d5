//! DNS through the whole proxy. Callers here come from loopback, so the test's network is there.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::spawn_local;

use super::world::*;
use crate::control::{AppView, ToProxy};

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 77;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    message
}

async fn ask_udp(world: &World, question: &Message) -> Message {
    let socket = UdpSocket::bind("[::1]:0").await.expect("a port");
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

fn texts(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

/// An app of the network that the tests ask from.
fn local_app(state: &str) -> AppView {
    let mut view = app(state, 1);
    view.network = LOOPBACK_NETWORK;
    view.addresses[0].network = LOOPBACK_NETWORK;
    view
}

#[test]
fn an_asker_of_no_network_is_refused() {
    run(|mut world| async move {
        world.send(settings_with(|settings| settings.networks.clear())).await;
        world.publish(local_app("started")).await;
        settled(&world).await;
        let answer = ask_udp(&world, &question("app.flycast.", RecordType::AAAA)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    });
}

/// Waits until the proxy has taken in what was sent before.
async fn settled(world: &World) {
    let mut stream = world.connect().await;
    stream.write_all(b"x\r\n\r\n").await.expect("the proxy reads");
    let _any = stream.read_u8().await.is_ok();
}

#[test]
fn names_of_other_networks_do_not_exist() {
    run(|mut world| async move {
        world.publish(app("started", 1)).await;
        settled(&world).await;
        for name in ["app.flycast.", "app.internal.", "00000000000001.vm.app.internal."] {
            let answer = ask_udp(&world, &question(name, RecordType::AAAA)).await;
            assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{name}");
        }
    });
}

#[test]
fn an_app_has_its_flycast_address_always_and_its_machines_while_they_run() {
    run(|mut world| async move {
        let mut view = local_app("stopped");
        world.publish(view.clone()).await;
        settled(&world).await;
        let flycast = question("App.Flycast.", RecordType::AAAA);
        let machine = question("00000000000001.vm.app.internal.", RecordType::AAAA);
        assert_eq!(texts(&ask_udp(&world, &flycast).await), [FLYCAST]);
        let asleep = ask_udp(&world, &machine).await;
        assert_eq!(
            (asleep.metadata.response_code, texts(&asleep).len()),
            (ResponseCode::NoError, 0)
        );
        view.machines[0].state = "started".to_owned();
        view.revision += 1;
        world.send(ToProxy::App(view)).await;
        settled(&world).await;
        assert_eq!(texts(&ask_tcp(&world, &machine).await), ["fdaa:0:7:a7b:9:9:9:2"]);
        assert_eq!(texts(&ask_tcp(&world, &flycast).await), [FLYCAST]);
    });
}

/// A resolver that answers every question by UDP with one address, after a forged answer, and by TCP
/// with more addresses than fit a datagram.
async fn resolver() -> SocketAddr {
    let (socket, address, listener) = loop {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("it is bound");
        // For TCP the port may be somebody else's.
        if let Ok(listener) = TcpListener::bind(address).await {
            break (socket, address, listener);
        }
    };
    spawn_local(accept(listener, answer_by_tcp));
    spawn_local(async move {
        let mut bytes = vec![0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut bytes).await {
            let asked = Message::from_vec(&bytes[..length]).expect("it is a question");
            let mut forged = answer(&asked, 0);
            forged.metadata.id = asked.metadata.id.wrapping_add(1);
            for message in [forged, answer(&asked, 1)] {
                let message = message.to_vec().expect("it can be written");
                socket.send_to(&message, from).await.expect("the proxy listens");
            }
        }
    });
    address
}

fn answer(asked: &Message, addresses: u8) -> Message {
    let mut answer = Message::response(asked.metadata.id, OpCode::Query);
    answer.add_query(asked.queries[0].clone());
    for last in 1..=addresses {
        let data = RData::A(A(Ipv4Addr::new(192, 0, 2, last)));
        answer.add_answer(Record::from_rdata(asked.queries[0].name().clone(), 60, data));
    }
    answer
}

async fn answer_by_tcp(mut stream: TcpStream) {
    let mut asked = vec![0; stream.read_u16().await.expect("a length comes").into()];
    stream.read_exact(&mut asked).await.expect("a question comes");
    let asked = Message::from_vec(&asked).expect("it is a question");
    let answer = answer(&asked, 200).to_vec().expect("it can be written");
    stream.write_u16(answer.len().try_into().expect("short")).await.expect("it reads");
    stream.write_all(&answer).await.expect("it reads");
}

#[test]
fn other_names_are_asked_of_the_next_resolver_when_the_first_is_silent() {
    run(|mut world| async move {
        let silent = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let resolvers = vec![silent.local_addr().expect("it is bound"), resolver().await];
        world.send(settings_with(|settings| settings.resolvers = resolvers)).await;
        world.publish(local_app("started")).await;
        settled(&world).await;
        let asked = question("example.com.", RecordType::A);
        let answer = ask_udp(&world, &asked).await;
        assert_eq!((answer.metadata.id, texts(&answer)), (77, vec!["192.0.2.1".to_owned()]));
        for _ in 0..3 {
            let whole = ask_tcp(&world, &asked).await;
            assert_eq!((whole.metadata.id, whole.answers.len()), (77, 200), "all of it, by TCP");
        }
    });
}

#[test]
fn without_resolvers_other_names_fail_at_once() {
    run(|mut world| async move {
        world.publish(local_app("started")).await;
        settled(&world).await;
        let answer = ask_udp(&world, &question("example.com.", RecordType::A)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    });
}

#[test]
fn when_no_resolver_can_be_asked_other_names_fail_at_once() {
    run(|mut world| async move {
        // The kernel sends nothing to port 0.
        let resolvers = ["127.0.0.1:0", "127.0.0.2:0"].map(|at| at.parse().expect("an address"));
        world.send(settings_with(|settings| settings.resolvers = resolvers.to_vec())).await;
        world.publish(local_app("started")).await;
        settled(&world).await;
        let asked = question("example.com.", RecordType::A);
        let answers = async { (ask_udp(&world, &asked).await, ask_tcp(&world, &asked).await) };
        let answers = tokio::time::timeout(Duration::from_secs(2), answers).await;
        let (udp, tcp) = answers.expect("nobody has to wait for what cannot come");
        assert_eq!(udp.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(tcp.metadata.response_code, ResponseCode::ServFail);
    });
}

#[test]
fn one_asker_has_a_share_of_the_questions_under_way_and_more_fail_at_once() {
    run(|mut world| async move {
        let silent = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let resolvers = vec![silent.local_addr().expect("it is bound")];
        world.send(settings_with(|settings| settings.resolvers = resolvers)).await;
        world.publish(local_app("started")).await;
        settled(&world).await;
        let socket = UdpSocket::bind("[::1]:0").await.expect("a port");
        let bytes = question("example.com.", RecordType::A).to_vec().expect("it can be written");
        for _ in 0..70 {
            socket.send_to(&bytes, world.dns_udp).await.expect("the proxy listens");
            tokio::task::yield_now().await;
        }
        let mut refused = 0;
        let mut answer = vec![0; 4096];
        let wait = Duration::from_millis(500);
        while let Ok(length) = tokio::time::timeout(wait, socket.recv(&mut answer)).await {
            let length = length.expect("an answer comes");
            let message = Message::from_vec(&answer[..length]).expect("it can be read");
            assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
            refused += 1;
        }
        assert_eq!(refused, 70 - 64);
        let own = ask_udp(&world, &question("app.flycast.", RecordType::AAAA)).await;
        assert_eq!(texts(&own), [FLYCAST], "our own names need no share");
    });
}
