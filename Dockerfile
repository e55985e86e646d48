# Headwater with CUDA, for machines with NVIDIA GPUs.
#   docker build -t headwater .
#   docker run --gpus all --shm-size=8g -v $PWD/runs:/srv/runs headwater doctor
# Not yet built nor run: no builder was at hand. torch brings its own CUDA libraries; the image needs the driver alone.
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/headwater
COPY . .
# One command, so that the pins (torch's above all) hold for whatever the other packages ask for.
ARG TORCH_INDEX=
RUN python -m pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} . \
    && python -c 'from headwater.train.torchvision_finder import main; main()'

WORKDIR /srv
ENTRYPOINT ["headwater"]
CMD ["--help"]
