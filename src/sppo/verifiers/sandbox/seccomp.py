"""The system calls that no program in a sandbox may make, as a seccomp filter (classic BPF, bytes).

A denied call fails with EPERM, as it would for want of a privilege; clone3 with ENOSYS, so that the C library falls
back to clone, whose flags a filter can read. The list holds what widens the kernel's surface or leaves the sandbox:
other processes' memory, mounts and namespaces, sockets, keys, modules, io_uring, memory that no limit counts, and what
stays behind where others find it: attributes and times of files, System V's queues and semaphores.
"""

from __future__ import annotations

import errno
import platform
import struct

_NUMBERS: dict[str, tuple[int, int]] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "socket": (41, 198), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142),
    "acct": (163, 89), "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "personality": (135, 92), "syslog": (103, 116), "bpf": (321, 280),
    "perf_event_open": (298, 241), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "userfaultfd": (323, 282),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "mbind": (237, 235), "set_mempolicy": (238, 237), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "truncate": (76, 45),
    "shmctl": (31, 195), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "semop": (65, 193),
    "semtimedop": (220, 192), "semctl": (66, 191), "mq_unlink": (241, 181), "io_setup": (206, 0),
    "inotify_add_watch": (254, 27),
    "sendmsg": (46, 211), "sendmmsg": (307, 269), "setsockopt": (54, 208), "setsid": (112, 157),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
    "file_setattr": (469, 469),
}  # fmt: skip
"""Name -> number on x86_64 and on aarch64. Without sendmsg no socket can be hidden in another one's queue, and without
setsockopt none holds more than the system's default. A session of its own is a share of the processors of its own."""

_TIMES = {"utimensat": (280, 88), "utime": (132, 88), "utimes": (235, 88), "futimesat": (261, 88)}
"""These do nothing and say that it is done, as copying a file sets its times. On what anybody may write to, such as
/dev/null, everybody may set them, which reaches out of any sandbox."""

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> column of the tables, the kernel's name for its calls (AUDIT_ARCH_*)."""

_CLONE3 = 435
_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
_FIRST_X32_CALL = 0x40000000

_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_CALL_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16

_ALL = 0xFFFFFFFF
_SET_PIPE_SIZE = 1031
_SHARED_ANONYMOUS = 0x21
_BY_ARGUMENT: tuple[tuple[tuple[int, int], int, int, int, int], ...] = (
    ((56, 220), 0, _ALL, _ANY_BIT, _NEW_NAMESPACES),
    ((302, 261), 0, _ALL, _ANY_BIT, _ALL),
    ((9, 222), 3, _SHARED_ANONYMOUS, _EQUAL, _SHARED_ANONYMOUS),
    ((72, 25), 1, _ALL, _EQUAL, _SET_PIPE_SIZE),
)
"""Calls denied for some values of one argument: (numbers, which argument, its bits that count, test, value). clone of
new namespaces; prlimit64 of another process, such as the sandbox's first one; mmap of memory that no process is charged
with once it has unmapped a part of it; fcntl that enlarges a pipe."""


def filter_program() -> bytes | None:
    """Returns the filter for this machine, as an array of `struct sock_filter`; None for a machine without a table."""
    known = _MACHINES.get(platform.machine())
    if known is None:
        return None
    column, machine = known
    deny = _statement(_RETURN, _ERRNO | errno.EPERM)
    program = [
        _statement(_LOAD, _MACHINE_AT),
        _jump(_EQUAL, machine, 1, 0),
        _statement(_RETURN, _KILL),
        _statement(_LOAD, _CALL_AT),
        _jump(_AT_LEAST, _FIRST_X32_CALL, 0, 1),
        deny,
        _jump(_EQUAL, _CLONE3, 0, 1),
        _statement(_RETURN, _ERRNO | errno.ENOSYS),
    ]
    for calls, answer in ((_NUMBERS, deny), (_TIMES, _statement(_RETURN, _ERRNO))):
        for number in dict.fromkeys(numbers[column] for numbers in calls.values()):
            program += [_jump(_EQUAL, number, 0, 1), answer]
    for numbers, place, bits, test, value in _BY_ARGUMENT:
        program += [
            _jump(_EQUAL, numbers[column], 0, 5),
            _statement(_LOAD, _ARGUMENTS_AT + 8 * place),
            _statement(_AND, bits),
            _jump(test, value, 0, 1),
            deny,
            _statement(_LOAD, _CALL_AT),
        ]
    program.append(_statement(_RETURN, _ALLOW))
    return b"".join(program)


def _statement(code: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, 0, 0, value)


def _jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
