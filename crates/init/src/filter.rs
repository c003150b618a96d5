//! The system call filter, as classic BPF instructions.
//!
//! It is a deny list: a Machine has its own user namespace and few capabilities, so most calls cannot hurt. Refused are
//! those that reach kernel code which such a process has no business with: mounts, namespaces, kernel images and
//! modules, BPF, performance counters, tracing, key rings, io_uring, the kernel's log, clocks, placement of memory, other
//! processes' descriptors. That is all that Docker's default refuses to a program with our capabilities, and tracing
//! besides, which Docker allows. They answer EPERM, except `clone3`: its flags lie in
//! memory where a filter cannot look, and ENOSYS makes C libraries fall back to `clone`, whose flags are checked.

/// One instruction, `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    k: u32,
}

const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

const ALLOW: u32 = 0x7fff_0000;
const REFUSE: u32 = 0x0005_0001;
const UNKNOWN: u32 = 0x0005_0026;

/// Offsets in `struct seccomp_data`; arguments are 64 bits, their low halves first on both processors.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENT_0: u32 = 16;
const ARGUMENT_1: u32 = 24;

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NEW_NAMESPACES: u32 =
    0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;
/// CLONE_NEWTIME, which only unshare knows: to clone these bits are the signal at the end.
const NEW_TIME_NAMESPACE: u32 = 0x80;
/// What Docker lets a program be: Linux, Linux with old kernel numbers, each with 32-bit addresses, and the question.
const PERSONALITIES: &[u32] = &[0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
const AF_ALG: u32 = 38;
const AF_VSOCK: u32 = 40;
/// ioctl that types into somebody's terminal.
const TIOCSTI: u32 = 0x5412;
/// First number of the x32 calls, which mirror the others and so would slip through.
const X32: u32 = 0x4000_0000;

#[cfg(target_arch = "x86_64")]
mod numbers {
    pub(super) const ARCHITECTURE: u32 = 0xc000_003e;
    pub(super) const CLONE: u32 = 56;
    pub(super) const UNSHARE: u32 = 272;
    pub(super) const SOCKET: u32 = 41;
    pub(super) const IOCTL: u32 = 16;
    pub(super) const PERSONALITY: u32 = 135;
    /// ptrace, syslog (103), uselib, ustat (136), sysfs (139), vhangup (153), modify_ldt, pivot_root, _sysctl, acct, settimeofday (164),
    /// mount, umount2, swapon, swapoff,
    /// reboot, sethostname (170), setdomainname, iopl, ioperm, create_module, init_module, delete_module, get_kernel_syms, query_module, quotactl,
    /// nfsservctl, lookup_dcookie (212), clock_settime (227), mbind (237), set_mempolicy, get_mempolicy, kexec_load, add_key, request_key, keyctl,
    /// migrate_pages (256), move_pages (279), perf_event_open, fanotify_init (300), clock_adjtime (305), open_by_handle_at, setns, process_vm_readv, process_vm_writev, kcmp, finit_module,
    /// kexec_file_load, bpf, userfaultfd.
    pub(super) const REFUSED: &[u32] = &[
        101, 103, 134, 136, 139, 153, 154, 155, 156, 163, 164, 165, 166, 167, 168, 169, 170, 171,
        172, 173, 174, 175, 176, 177, 178, 179, 180, 212, 227, 237, 238, 239, 246, 248, 249, 250,
        256, 279, 298, 300, 304, 305, 308, 310, 311, 312, 313, 320, 321, 323,
    ];
}

#[cfg(target_arch = "aarch64")]
mod numbers {
    pub(super) const ARCHITECTURE: u32 = 0xc000_00b7;
    pub(super) const CLONE: u32 = 220;
    pub(super) const UNSHARE: u32 = 97;
    pub(super) const SOCKET: u32 = 198;
    pub(super) const IOCTL: u32 = 29;
    pub(super) const PERSONALITY: u32 = 92;
    /// lookup_dcookie, umount2, mount, pivot_root, nfsservctl, vhangup (58), quotactl, acct, kexec_load, init_module,
    /// delete_module, clock_settime (112), syslog (116), ptrace, reboot, sethostname (161), setdomainname, settimeofday
    /// (170), add_key, request_key, keyctl, swapon, swapoff, mbind (235), get_mempolicy, set_mempolicy, migrate_pages,
    /// move_pages, perf_event_open, fanotify_init (262), open_by_handle_at, clock_adjtime (266), setns,
    /// process_vm_readv, process_vm_writev, kcmp, finit_module, bpf, userfaultfd, kexec_file_load.
    pub(super) const REFUSED: &[u32] = &[
        18, 39, 40, 41, 42, 58, 60, 89, 104, 105, 106, 112, 116, 117, 142, 161, 162, 170, 217, 218,
        219, 224, 225, 235, 236, 237, 238, 239, 241, 262, 265, 266, 268, 270, 271, 272, 273, 280,
        282, 294,
    ];
}

/// Calls with one number on all processors: io_uring_setup, _enter, _register; open_tree, move_mount, fsopen, fsconfig,
/// fsmount, fspick; pidfd_getfd; process_madvise; mount_setattr; quotactl_fd; set_mempolicy_home_node; open_tree_attr.
const REFUSED_EVERYWHERE: &[u32] =
    &[425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 440, 442, 443, 450, 467];
const CLONE3: u32 = 435;

const fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, jump_true: 0, jump_false: 0, k: offset }
}

const fn jump(code: u16, k: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, k }
}

const fn answer(k: u32) -> Instruction {
    Instruction { code: RETURN, jump_true: 0, jump_false: 0, k }
}

/// If the accumulator equals `number`, answer `result`.
fn refuse(program: &mut Vec<Instruction>, number: u32, result: u32) {
    program.push(jump(JUMP_EQUAL, number, 0, 1));
    program.push(answer(result));
}

/// What to do with a call, by one of its arguments.
struct Inspection<'a> {
    argument: u32,
    test: u16,
    values: &'a [u32],
    /// The answer when the test holds for one of the values, and the other one.
    answers: (u32, u32),
}

/// If the call is `number`, look at an argument.
fn inspect(program: &mut Vec<Instruction>, number: u32, inspection: &Inspection<'_>) {
    let Inspection { argument, test, values, answers } = *inspection;
    let skipped = u8::try_from(2 * values.len() + 2).unwrap_or(u8::MAX);
    program.push(jump(JUMP_EQUAL, number, 0, skipped));
    program.push(load(argument));
    for value in values {
        program.push(jump(test, *value, 0, 1));
        program.push(answer(answers.0));
    }
    program.push(answer(answers.1));
}

/// The whole filter.
pub(crate) fn program() -> Vec<Instruction> {
    let mut program = vec![
        load(ARCHITECTURE),
        // 32-bit programs on a 64-bit kernel have other numbers; they get "no such call".
        jump(JUMP_EQUAL, numbers::ARCHITECTURE, 1, 0),
        answer(UNKNOWN),
        load(NUMBER),
        jump(JUMP_AT_LEAST, X32, 0, 1),
        answer(UNKNOWN),
    ];
    refuse(&mut program, CLONE3, UNKNOWN);
    for number in numbers::REFUSED.iter().chain(REFUSED_EVERYWHERE) {
        refuse(&mut program, *number, REFUSE);
    }
    let refused = (REFUSE, ALLOW);
    let inspections = [
        (numbers::CLONE, ARGUMENT_0, JUMP_ANY_BIT, &[NEW_NAMESPACES][..], refused),
        (
            numbers::UNSHARE,
            ARGUMENT_0,
            JUMP_ANY_BIT,
            &[NEW_NAMESPACES | NEW_TIME_NAMESPACE],
            refused,
        ),
        (numbers::SOCKET, ARGUMENT_0, JUMP_EQUAL, &[AF_ALG, AF_VSOCK], refused),
        (numbers::IOCTL, ARGUMENT_1, JUMP_EQUAL, &[TIOCSTI], refused),
        (numbers::PERSONALITY, ARGUMENT_0, JUMP_EQUAL, PERSONALITIES, (ALLOW, REFUSE)),
    ];
    for (number, argument, test, values, answers) in inspections {
        inspect(&mut program, number, &Inspection { argument, test, values, answers });
    }
    program.push(answer(ALLOW));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter answers to a call; the kernel's interpreter in small.
    fn check(architecture: u32, number: u32, arguments: [u32; 2]) -> u32 {
        let program = program();
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let Instruction { code, jump_true, jump_false, k } = program[at];
            let jump = |holds: bool| usize::from(if holds { jump_true } else { jump_false });
            at += 1 + match code {
                RETURN => return k,
                JUMP_EQUAL => jump(accumulator == k),
                JUMP_AT_LEAST => jump(accumulator >= k),
                JUMP_ANY_BIT => jump(accumulator & k != 0),
                _ => 0,
            };
            if code == LOAD {
                accumulator = match k {
                    NUMBER => number,
                    ARCHITECTURE => architecture,
                    ARGUMENT_0 => arguments[0],
                    _ => arguments[1],
                };
            }
        }
    }

    fn native(number: u32, first: u32, second: u32) -> u32 {
        check(numbers::ARCHITECTURE, number, [first, second])
    }

    #[test]
    fn every_listed_call_is_refused_and_others_pass() {
        for number in 0..600 {
            let listed = numbers::REFUSED.contains(&number) || REFUSED_EVERYWHERE.contains(&number);
            let expected = match number {
                CLONE3 => UNKNOWN,
                _ if listed => REFUSE,
                _ => ALLOW,
            };
            assert_eq!(native(number, 0, 0), expected, "call {number}");
        }
    }

    #[test]
    fn a_thread_may_be_made_but_no_namespace() {
        assert_eq!(native(numbers::CLONE, 0x003d_0f00, 0), ALLOW);
        assert_eq!(native(numbers::CLONE, 0x1000_0011, 0), REFUSE);
        assert_eq!(native(numbers::UNSHARE, 0x1000_0000, 0), REFUSE);
        assert_eq!(native(numbers::UNSHARE, 0x0000_0080, 0), REFUSE);
        assert_eq!(native(numbers::UNSHARE, 0x0000_0400, 0), ALLOW);
    }

    #[test]
    fn unusual_sockets_and_typing_into_a_terminal_are_refused() {
        assert_eq!(native(numbers::SOCKET, AF_VSOCK, 0), REFUSE);
        assert_eq!(native(numbers::SOCKET, AF_ALG, 0), REFUSE);
        assert_eq!(native(numbers::SOCKET, 10, 0), ALLOW);
        assert_eq!(native(numbers::IOCTL, 0, TIOCSTI), REFUSE);
        assert_eq!(native(numbers::IOCTL, 0, 0x5401), ALLOW);
    }

    #[test]
    fn a_program_may_ask_for_its_personality_but_not_switch_protections_off() {
        for allowed in PERSONALITIES {
            assert_eq!(native(numbers::PERSONALITY, *allowed, 0), ALLOW);
        }
        // No address randomisation; every page executable.
        for refused in [0x0004_0000, 0x0040_0000] {
            assert_eq!(native(numbers::PERSONALITY, refused, 0), REFUSE);
        }
    }

    #[test]
    fn other_call_tables_do_not_exist() {
        assert_eq!(check(0x4000_0003, 4, [0, 0]), UNKNOWN);
        assert_eq!(native(X32 + 165, 0, 0), UNKNOWN);
    }
}
