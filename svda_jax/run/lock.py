"""Who trains in a bucket: a lock that a killed process does not leave behind.

It is an object, .lock/<number>, that is only ever created where there is none: who
creates the next number trains. It holds a sign of life that is renewed every `BEAT`
seconds. One that stands still for `PATIENCE` seconds, by the clock of who waits, is of
a process that was killed, and the next number may be taken; at once by the machine
whose folder knows that its process has ended. Who finds another number than its own
sends nothing more and ends; who could not look for half of `PATIENCE` looks before it
sends anything. What is not excluded: a process that stands still for longer than that
while it sends a file, and then goes on, may finish this file.
"""

import json
import os
import re
import socket
import time

from svda_jax import UserError

BEAT = 10  # seconds between signs of life
PATIENCE = 60  # seconds without one after which a process counts as killed


class Lock:
    """The lock of a run.

    Args:
      bucket: the run's `Bucket`.

    Attributes:
      lost: the error of a process whose run another has taken over, or None.
    """

    def __init__(self, bucket):
        self.lost = None
        self._bucket = bucket
        self._host = socket.gethostname()
        self._sign = {}
        self._looked = 0  # when it was known to be ours
        self._number, self._holder = newest(bucket)

    def wait(self, owner):
        """Waits until nobody trains.

        Args:
          owner: what the folder on this machine is known by, or None. No process of
            this machine trains in it.

        Returns:
          Whether the last who trained did it in that folder.

        Raises:
          UserError: somebody trains.
        """
        ours = owner is not None and self._holder.get("owner") == owner
        here = ours and self._holder.get("host") == self._host
        if self._holder.get("alive") and not here:
            self._watch()
        return ours

    def _watch(self):
        print(
            f"{self._bucket.address} was trained in by {self._holder['host']}; waiting "
            f"{PATIENCE} s for a sign of life",
            flush=True,
        )
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            time.sleep(min(BEAT / 2, PATIENCE / 4))
            now = newest(self._bucket)
            if now != (self._number, self._holder) and now[1].get("alive"):
                raise self.refused(now[1]["host"])

    def take(self, owner):
        """Takes it, for the folder that is known by that.

        Raises:
          UserError: another did at the same moment.
        """
        before = self._number
        self._number += 1
        self._sign = {"owner": owner, "host": self._host, "process": os.getpid()}
        self._looked = time.time()
        created = self._bucket.create(self._name(), self._text(alive=True))
        if not created or max(_numbers(self._bucket), default=0) != self._number:
            if created:
                self._bucket.remove(self._name())
            raise self.refused("it began at the same moment")
        for number in _numbers(self._bucket):
            if number <= before:
                self._bucket.remove(self._name(number))

    def renew(self):
        """Gives a sign of life; or finds that another has taken the run over."""
        now = time.time()
        number, holder = newest(self._bucket)
        if number == self._number:
            self._bucket.write(self._name(), self._text(alive=True))
            self._looked = now
        elif number:
            self.lost = self.refused(holder.get("host"))
        else:
            self.lost = UserError(f"{self._bucket.address}: the run was removed")

    def check(self):
        """Looks again if the last time is long ago; raises UserError if it is lost."""
        if time.time() - self._looked > PATIENCE / 2:
            self.renew()
        if self.lost:
            raise self.lost

    def release(self, *, begun):
        """Lets others train; where nothing was begun, nothing stays."""
        if self.lost:
            return
        if begun:
            self._bucket.write(self._name(), self._text(alive=False))
        else:
            self._bucket.remove(self._name())

    def refused(self, who):
        """The error of who may not train."""
        where = self._bucket.address
        return UserError(f"another process is training in {where}: {who}")

    def _name(self, number=None):
        return f".lock/{number or self._number}"

    def _text(self, *, alive):
        return json.dumps({**self._sign, "alive": alive, "time": time.time()}).encode()


def newest(bucket):
    """Number of the newest lock and what it says; 0 and {} where there is none."""
    number = max(_numbers(bucket), default=0)
    try:
        return number, dict(json.loads(bucket.read(f".lock/{number}") or "{}"))
    except (ValueError, TypeError):
        raise UserError(
            f"{bucket.address}/.lock/{number} is no lock; remove it if nobody trains"
        ) from None


def _numbers(bucket):
    found = [re.fullmatch(r"\.lock/(\d+)", name) for name in bucket.list(".lock")]
    return [int(match[1]) for match in found if match]
