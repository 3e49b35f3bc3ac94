"""People who talk with a full-duplex model (PersonaPlex, Moshi): S1's benchmark with --mode, else on and on."""

from locust import task

from workers.duplex import DuplexUser


class Talker(DuplexUser):
    @task
    def talk(self) -> None:
        with self.iteration() as iteration, self.call() as session:
            session.listen()
            if iteration.mode == "interruption":
                session.interrupt()
            elif iteration.number is not None:
                session.say()
            elif iteration.mode == "throughput":
                while self.goes_on(session):
                    session.say(pause_s=0.0)
            else:
                while self.goes_on(session):
                    if self.barges_in():
                        session.interrupt()
                    else:
                        session.say()
