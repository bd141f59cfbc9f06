# To be read by a shell (. deploy/environment.sh) before any of Flower's commands: nothing calls anybody, and Flower
# keeps its own things in a folder of this deployment's.
export FLWR_TELEMETRY_ENABLED=0
export FLWR_DISABLE_UPDATE_CHECK=1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
export RAY_USAGE_STATS_ENABLED=0
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
export FLWR_HOME=${FLWR_HOME:-$PWD/flower_home}
# Ray, where a simulation is started, listens on this machine alone.
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=${RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER:-0}
