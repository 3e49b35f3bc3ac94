# Using Locust (locustfile.py)
from locust import HttpUser, task, between

class TTSUser(HttpUser):
    wait_time = between(1, 3)

    @task
    def synthesize(self):
        self.client.post("/v1/synthesize", json={
            "text": "Hi, this is a test message for load testing.",
            "speaker_id": "default"
        })
