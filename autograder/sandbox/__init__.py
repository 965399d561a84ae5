"""Where strangers' programs run, and how the grader talks to them.

    grader (trusted)                          box (a learner's)
    ----------------                          -----------------
    warming.Warm      starts   warm.py        imports torch once; trusted, knows no secret
    session.Session   starts   box.py         one bubblewrap: namespaces, read-only system, scratch
                      asks     warm.py        to fork; the child walks into the box and locks
                                              itself in (lockdown.py)
                      verifies box.py         from outside that it did; if not, nothing is run
    remote.RemoteSubject  <--- wire.py --->   inside.py: runs cells, calls functions, answers

Checks run in the grader and see a learner's function through a `RemoteSubject`, which has the
surface of `autograder.subjects.Local`. Inputs go in, plain data comes out.

What holds, and where:

- *Nothing that a session says is worth a point but a right answer.* Its process belongs to the
  learner, who may rewrite all of `inside.py` in it. So the trusted side asks with inputs that are
  not known before, takes one answer to one question (by a number that cannot be guessed), rebuilds
  it from bytes within bounds, and compares it itself. Nothing is ever unpickled. Two things are a
  process's word alone: whether a call left its inputs as they were and whether a result carries a
  graph. To lie about either takes more lines than to do it.
- *Nothing outside is in reach.* Namespaces for users, mounts, processes, network, IPC and names; an
  unprivileged user, one a box where the grader is root; no capabilities, no new privileges; an
  empty environment, an empty `/proc`, one socket and no other open file; a filter of system calls
  (libseccomp, without which no session starts). The mount namespace shows `/usr`, Python and its
  packages, and the modules that `session.stage` laid out. Landlock would forbid what is not there.
- *Everything is limited.* By default a process cannot start another, so that the limits of one
  (address space, processor time, threads, files) are those of the session; memory that they do not
  count (memfd, System V, a large tmpfs) is not to be had. Where more processes are allowed, a
  cgroup makes limits hold for all of them (`Warm(cgroup=...)`); without one they hold for each.
- *Failure is data.* Time is limited by call, cell, exercise and notebook; seconds in which the
  machine kept a process waiting do not count. What takes too long, dies or breaks the rules of the
  wire costs that request (`Reply.error`); the next one finds the process rebuilt, by replaying the
  cells that had not killed it. What is the grader's own fault is kept apart (`Session.fault`).
"""
